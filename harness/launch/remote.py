"""`--address ray://head:10001`: the same command on the head of a cluster, its lines relayed to this terminal.

A driver must run on a node of its cluster. So that a laptop can start a grid, the command is sent to the head node
with the text of the grid file, and runs there as if it were typed there; all other paths are those of the cluster.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from harness.launch import environment
from harness.record import RunError

LINES_EVERY_S = 0.5
CONNECT_ATTEMPTS = 3


def relay(address: str, words: Sequence[str], files: dict[str, str], screen: TextIO = sys.stdout) -> int:
    """Run `metrix-bench WORDS` on the head of the cluster at `address` and return its exit code.

    `files` are texts that go along: where a word is one of their names, the head reads that text. Ctrl-C here is
    Ctrl-C there; a second one leaves it running, and `metrix-bench status` and `stop` reach it all the same.
    """
    environment.prepare(address)
    import ray

    for attempt in range(CONNECT_ATTEMPTS):
        try:
            ray.init(address, logging_level="ERROR")
            break
        except (ConnectionError, ValueError, RuntimeError, ImportError, ray.exceptions.RayError) as error:
            if "Initialization failure" in str(error) and attempt + 1 < CONNECT_ATTEMPTS:
                continue  # the head forks a process for each client, beside threads of grpc, and some die at once
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"{address} cannot be reached ({first}): is it the client port of a head (10001), is ray[client] "
                "installed on both sides, and is the cluster's token here (RAY_AUTH_TOKEN_PATH)?"
            ) from None
    try:
        head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001}, max_concurrency=2)(_Command)
        command = head.remote(list(words), dict(files))
        done = command.run.remote()
        asked = 0
        while True:
            try:
                ready, _ = ray.wait([done], timeout=LINES_EVERY_S)
                for line in ray.get(command.lines.remote()):
                    print(line, end="", file=screen, flush=True)
                if ready:
                    return ray.get(done)
            except KeyboardInterrupt:
                asked += 1
                if asked > 1:
                    raise
                ray.get(command.interrupt.remote())
    finally:
        ray.shutdown()


class _Command:
    """A command under way on the head: its lines so far, and a way to interrupt it."""

    def __init__(self, words: list[str], files: dict[str, str]):
        folder = Path(tempfile.mkdtemp(prefix=f"metrix-ray-{os.getpid()}-", dir="/tmp"))
        for name, text in files.items():
            (folder / Path(name).name).write_text(text)
        self._words = [str(folder / Path(word).name) if word in files else word for word in words]
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def run(self) -> int:
        import ray

        # An environment that this worker got from ray would make the driver believe it is a worker, too.
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_JOB", "RAY_RAYLET"))}
        clean["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address  # `auto` is this cluster, not another one here
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.cli", *self._words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean,
        )
        for line in self._process.stdout:
            with self._lock:
                self._lines.append(line)
        code = self._process.wait()
        time.sleep(2 * LINES_EVERY_S)  # the last lines are fetched before the actor is gone
        return code

    def lines(self) -> list[str]:
        with self._lock:
            lines, self._lines = self._lines, []
        return lines

    def interrupt(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
