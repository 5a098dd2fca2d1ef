"""Ranks: the processes of one machine that share the work of a trial, and what happens when one of them ends."""

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

RUN_RANK = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from harness.training.ranks import _run_rank; _run_rank()"
)
NOTICE_S = 3  # within which a rank whose message failed must have ended


class RankFailed(RuntimeError):
    """Raised if a rank other than 0 stops; the message names the rank and its error."""


class Ranks(AbstractContextManager):
    """Run function(rank, *arguments) in processes as ranks 1, 2, …, while this process continues as rank 0.

    The processes start on entering the context, and meet rank 0 when it calls `join`. If a rank raises or dies, this
    process raises RankFailed, or torch.OutOfMemoryError if the rank's memory ran out. The ranks end when rank 0
    leaves the context or dies: a rank lives as long as its pipe from rank 0 is open. `function` must be importable.
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
                    [sys.executable, "-c", RUN_RANK], stdin=subprocess.PIPE, stdout=log, stderr=log
                )
            self._processes[rank] = process
            assert process.stdin is not None
            pickle.dump(sys.path, process.stdin)
            pickle.dump((rank, self.count, self.device.type, self._folder), process.stdin)
            process.stdin.write(self._call)
            process.stdin.flush()
        return self

    def join(self) -> None:
        """Meet the other ranks; after this, `Parallel` can be used."""
        store = group.store(self._folder, self.count)
        deadline = time.monotonic() + group.START_S
        for rank in self._processes:
            while not store.check([f"rank {rank}"]):
                self.check()
                if time.monotonic() > deadline:
                    raise RankFailed(f"rank {rank} of {self.count} did not start within {group.START_S} s")
                time.sleep(0.02)
        store.set("rank 0", "here")
        group.join(0, self.count, self.device.type, store)
        if self.device.type == "cuda":
            threading.Thread(target=self._abort_when_alone, daemon=True).start()

    def check(self) -> None:
        """Raise the failure of a rank, if one has failed."""
        if failure := self._failure():
            raise failure

    def __exit__(self, kind, error, trace) -> None:
        self._leaving.set()
        try:
            if isinstance(error, Exception) and not isinstance(error, RankFailed | torch.OutOfMemoryError):
                self._raise_cause(error)
        finally:
            self._end(in_order=error is None)

    def _raise_cause(self, error: Exception) -> None:
        """Raise the failure of another rank if it caused this error; not an error that all ranks have."""
        deadline = time.monotonic() + (NOTICE_S if group.is_message_error(error) else 0)
        while not (failure := self._failure()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if failure and f": {type(error).__name__}: " not in str(failure):
            raise failure from error

    def _failure(self) -> Exception | None:
        """Return the failure of the first rank that has failed, or None."""
        for rank, process in self._processes.items():
            if process.poll():
                reason, of_memory = self._reason(rank)
                kind = torch.OutOfMemoryError if of_memory else RankFailed
                return kind(f"rank {rank} of {self.count}: {reason}")
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

    def _reason(self, rank: int) -> tuple[str, bool]:
        """Return why a rank ended, and whether memory ran out."""
        path = self._folder / f"{rank}.json"
        if path.exists():
            report = json.loads(path.read_text(encoding="utf-8"))
            return report["error"], report["out of memory"]
        code = self._processes[rank].returncode
        how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with status {code}"
        log = (self._folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended {how}{': ' + log[-1] if log else ''}", False

    def _abort_when_alone(self) -> None:
        """Abort messages to a dead rank, which on GPUs would wait forever, so that rank 0 notices the failure."""
        while not self._leaving.wait(1):
            if any(process.poll() for process in self._processes.values()):
                if not self._leaving.wait(NOTICE_S):
                    group.abort()
                return


def _run_rank() -> None:
    """Run a rank other than 0: read its work from standard input, and end when standard input ends."""
    rank, count, device, folder = pickle.load(sys.stdin.buffer)
    call = pickle.Unpickler(sys.stdin.buffer)

    def end_with_rank_0() -> None:
        sys.stdin.buffer.read()
        shutil.rmtree(folder, ignore_errors=True)  # rank 0 was killed, so it did not remove the folder
        os._exit(1)

    try:
        function, arguments = call.load()
        threading.Thread(target=end_with_rank_0, daemon=True).start()
        store = group.store(folder, count)
        store.set(f"rank {rank}", "here")
        store.wait(["rank 0"], group.NO_TIMEOUT)
        group.join(rank, count, device, store)
        function(rank, *arguments)
        if device == "cuda":
            torch.cuda.synchronize()  # rank 0 may still wait for the last message
    except BaseException as error:
        traceback.print_exc()
        report = {"error": f"{type(error).__name__}: {error}", "out of memory": out_of_memory(error)}
        (folder / f"{rank}.json").write_text(json.dumps(report), encoding="utf-8")
        os._exit(1)
    os._exit(0)  # skips the shutdown of the interpreter, in which a process group may wait for others
