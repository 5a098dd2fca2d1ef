"""Ranks: the processes of one machine that share the work of one trial, and what happens when one of them ends."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch

from harness.training import group
from harness.training.chunked import out_of_memory

FOLLOW = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from harness.training.ranks import _follow; _follow()"
)
NOTICE_S = 3  # after a message failed, until the rank that failed it must have ended


class RankFailed(RuntimeError):
    """A rank other than 0 that stopped; the message names it and what it said."""


class Ranks(AbstractContextManager):
    """Ranks 1, 2, … as processes that call function(rank, *arguments), while this process, rank 0, goes on.

    They start on entering, and meet rank 0 when it calls `join`. A rank that raises or dies raises here: RankFailed
    naming it, or torch.OutOfMemoryError where its memory ran out. When rank 0 leaves, however it leaves, they end: a
    rank lives as long as the pipe from rank 0 is open, and the kernel closes that. `function` is found by its name.
    """

    def __init__(self, count: int, device: torch.device, function: Callable[..., None], *arguments: Any):
        self.count, self.device = count, device
        self._call = pickle.dumps((function, arguments))
        self._open, self._processes, self._leaving = ExitStack(), {}, threading.Event()

    def __enter__(self) -> "Ranks":
        if group.in_use():
            raise RuntimeError(f"torch.distributed is in use in this process, which cannot be rank 0 of {self.count}")
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="metrix-ranks-")))
        for rank in range(1, self.count):
            with (self._folder / f"{rank}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-c", FOLLOW], stdin=subprocess.PIPE, stdout=log, stderr=log
                )
            self._processes[rank] = process
            pickle.dump(sys.path, process.stdin)
            pickle.dump((rank, self.count, self.device.type, self._folder), process.stdin)
            process.stdin.write(self._call)
            process.stdin.flush()
        return self

    def join(self) -> None:
        """Meet the other ranks; what follows may use `Parallel`."""
        store = group.store(self._folder, self.count)
        until = time.monotonic() + group.START_S
        for rank in self._processes:
            while not store.check([f"rank {rank}"]):
                self.check()
                if time.monotonic() > until:
                    raise RankFailed(f"rank {rank} of {self.count} has not begun within {group.START_S} s")
                time.sleep(0.02)
        store.set("rank 0", "here")
        group.join(0, self.count, self.device.type, store)
        if self.device.type == "cuda":
            threading.Thread(target=self._abort_when_alone, daemon=True).start()

    def check(self) -> None:
        """Raise what ended a rank, where one has ended before its time."""
        if lost := self._lost():
            raise lost

    def __exit__(self, kind, error, trace) -> None:
        self._leaving.set()
        try:
            if isinstance(error, Exception) and not isinstance(error, RankFailed | torch.OutOfMemoryError):
                self._blame(error)
        finally:
            self._end(in_order=error is None)

    def _blame(self, error: Exception) -> None:
        """Raise what ended another rank, where that is why this one failed; not an error that all ranks have."""
        until = time.monotonic() + (NOTICE_S if group.is_message_error(error) else 0)
        while not (lost := self._lost()) and time.monotonic() < until:
            time.sleep(0.02)
        if lost and f": {type(error).__name__}: " not in str(lost):
            raise lost from error

    def _lost(self) -> Exception | None:
        """What ended the first rank that has ended before its time."""
        for rank, process in self._processes.items():
            if process.poll():
                said, memory = self._last_words(rank)
                return (torch.OutOfMemoryError if memory else RankFailed)(f"rank {rank} of {self.count}: {said}")
        return None

    def _end(self, in_order: bool) -> None:
        for process in self._processes.values():
            if in_order:
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    in_order = False
            process.kill()
            process.wait()
            process.stdin.close()
        if group.in_use():
            if self.device.type == "cuda" and not in_order:
                group.abort()  # destroying it would wait for the others
            else:
                group.leave()
        self._open.close()

    def _last_words(self, rank: int) -> tuple[str, bool]:
        """What ended a rank, and whether memory ran out."""
        path = self._folder / f"{rank}.json"
        if path.exists():
            words = json.loads(path.read_text(encoding="utf-8"))
            return words["error"], words["out of memory"]
        code = self._processes[rank].returncode
        how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with status {code}"
        log = (self._folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended {how}{': ' + log[-1] if log else ''}", False

    def _abort_when_alone(self) -> None:
        """On GPUs a message to a dead rank waits forever: end it, so that rank 0 goes on and finds out."""
        while not self._leaving.wait(1):
            if any(process.poll() for process in self._processes.values()):
                if not self._leaving.wait(NOTICE_S):
                    group.abort()
                return


def _follow() -> None:
    """The life of a rank other than 0: what is to be done comes through the standard input, whose end is its own."""
    rank, count, device, folder = pickle.load(sys.stdin.buffer)
    call = pickle.Unpickler(sys.stdin.buffer)

    def end_with_rank_0() -> None:
        sys.stdin.buffer.read()
        shutil.rmtree(folder, ignore_errors=True)  # rank 0 was killed, or it would have done so itself
        os._exit(1)

    try:
        function, arguments = call.load()
        threading.Thread(target=end_with_rank_0, daemon=True).start()
        store = group.store(folder, count)
        store.set(f"rank {rank}", "here")
        store.wait(["rank 0"], group.FOREVER)
        group.join(rank, count, device, store)
        function(rank, *arguments)
        if device == "cuda":
            torch.cuda.synchronize()  # rank 0 may still wait for what was sent last
    except BaseException as error:
        traceback.print_exc()
        said = {"error": f"{type(error).__name__}: {error}", "out of memory": out_of_memory(error)}
        (folder / f"{rank}.json").write_text(json.dumps(said), encoding="utf-8")
        os._exit(1)
    os._exit(0)  # without the end of an interpreter, in which a process group may wait for others
