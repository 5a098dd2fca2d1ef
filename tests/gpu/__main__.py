"""Test and measure everything on this machine's GPU, write each result at once, and end with one table.

    python -m tests.gpu [--data FOLDER_OR_ZIP] [--weights FILE] [--minutes 8] [--only NAME,…] [--out FOLDER]

A folder of results holds `results.jsonl` (a line a result), `table.md`, `log.txt` (what the pieces printed), and
`records.zip` (records of the trials that were fine-tuned). The same command on the same machine and revision adds to
it, and the table is of all of them.
"""

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.gpu import plan
from tests.gpu.table import SAME, table

ROOT = Path(__file__).parents[2]
START_S = 180  # within which a worker has imported what it needs and has drawn or unpacked its data
SLOWER = 5  # a stand-in, than the card that limits are for
NOTICE_S = 5  # after its limit, for a piece to end by itself
LEAST_CLASSES = 20


class Refused(ValueError):
    """Raised for what the command cannot do; the message is for its user."""


class Ended(Exception):
    """Raised if a worker has died or was killed at its limit; the message says which."""


class Worker:
    """The process that runs the pieces; started when first needed, and again after it ended."""

    def __init__(self, settings: dict[str, Any], log: Path):
        self._settings, self._log = settings, log
        self._process: subprocess.Popen | None = None

    def start(self, limit_s: float) -> dict[str, Any] | None:
        """Start the worker if none is running and return its report on the machine; None if it was running."""
        if self._process is not None:
            return None
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.worker", json.dumps(self._settings)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                start_new_session=True,  # so that its children end with it
            )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, args=(self._process.stdout, self._answers), daemon=True).start()
        return self.next(limit_s)["head"]

    @staticmethod
    def _listen(output: Any, answers: queue.Queue) -> None:
        for line in output:
            answers.put(line)
        answers.put("")

    def ask(self, piece: str, seconds: float) -> None:
        """Request a piece."""
        with suppress(OSError):  # it has ended, which the next answer says
            print(json.dumps({"piece": piece, "seconds": seconds}), file=self._process.stdin, flush=True)

    def next(self, limit_s: float) -> dict[str, Any]:
        """Return its next message. Raise Ended if there is none in time or the worker has died."""
        try:
            line = self._answers.get(timeout=max(0.0, limit_s))
        except queue.Empty:
            self.stop()
            raise Ended("it was ended at its time limit") from None
        if not line:
            code = self._process.wait()
            self.stop()
            raise Ended(f"its process ended with {code}; log.txt has its last words")
        return json.loads(line)

    def stop(self) -> None:
        """Kill the worker and everything that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Results:
    """The folder of results: lines are appended as they arrive, and the table is rewritten after each piece."""

    def __init__(self, out: Path, words: str):
        self._path, self._table, self._words = out / "results.jsonl", out / "table.md", words
        self.head: dict[str, Any] = {}
        self.outcomes: list[str] = []

    def add(self, piece: plan.Piece, **content: Any) -> None:
        """Write and print the result of a piece, or how it ended."""
        line = {
            "piece": piece.name,
            "kind": "test" if piece.is_test else "figure",
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **{key: self.head.get(key) for key in SAME},
            **content,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if "outcome" in content:
            self.outcomes.append(content["outcome"])
            print(f"{piece.name}: {content['outcome']} {content.get('why', '')}".rstrip(), flush=True)
            self.write_table()

    def write_table(self) -> str:
        """Write the table of all results so far."""
        written = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        lines = [json.loads(line) for line in written.splitlines()]
        text = table(lines, self.head, self._words)
        self._table.write_text(text, encoding="utf-8")
        return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pieces and return 0 if no test failed, 1 if one did, 2 if nothing could run."""
    options = parsed(arguments)
    try:
        pieces = plan.chosen(options.only, options.plan)
        check(options)
    except ValueError as refusal:
        print(f"cannot run: {refusal}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="metrix-bench-gpu-"))
    settings = {
        "stand_in": options.stand_in,
        "scratch": str(scratch),
        "out": str(options.out.resolve()),
        "data": options.data and str(options.data.resolve()),
        "weights": options.weights and str(options.weights.resolve()),
        "plan": options.plan,
    }
    worker = Worker(settings, options.out / "log.txt")
    results = Results(options.out, words(options))
    try:
        run_all(pieces, worker, results, 60 * options.minutes, options.stand_in)
    except Refused as refusal:
        print(f"cannot run: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was measured is kept", file=sys.stderr)
    finally:
        worker.stop()
        shutil.rmtree(scratch, ignore_errors=True)
        if results.outcomes:
            print(results.write_table())
    return 1 if {"failed", "ended"} & set(results.outcomes) else 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="photographs: a folder with one folder a class, or a zip of one")
    parser.add_argument("--weights", type=Path, help="weights, named after their timm network: NETWORK.safetensors")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all together (default: 8)")
    parser.add_argument("--only", default="", help="some pieces, by name, or tests, or figures: a,b,c")
    parser.add_argument("--out", type=Path, default=Path("results/runs/gpu"), help="the folder of results")
    parser.add_argument("--stand-in", action="store_true", help="try the command on the processor, with small sizes")
    parser.add_argument("--plan", default="tests.gpu.plan", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raise Refused for missing files; the worker checks whether there is a GPU."""
    for name, path in (("--data", options.data), ("--weights", options.weights)):
        if path is not None and not path.exists():
            raise Refused(f"{name} {path}: there is no such file or folder")
    if options.data is not None and options.data.is_dir():
        classes = sum(1 for path in options.data.iterdir() if path.is_dir() and not path.name.startswith("."))
        if classes < LEAST_CLASSES:
            raise Refused(
                f"--data {options.data} holds {classes} folders of classes; at least {LEAST_CLASSES} are needed"
            )


def run_all(pieces: Sequence[plan.Piece], worker: Worker, results: Results, seconds: float, stand_in: bool) -> None:
    """Run the pieces in order while time is left, and report why the others did not run."""
    ends = time.monotonic() + seconds
    for piece in pieces:
        left = ends - time.monotonic()
        needs = 0 if stand_in else piece.needs_s
        if left <= needs:
            needed = f"it needs about {needs:.0f} s and " if needs else ""
            results.add(piece, outcome="skipped", why=f"{needed}{max(0, left):.0f} s were left")
            continue
        try:
            if head := worker.start(min(START_S, left)):
                if "refused" in head:
                    raise Refused(head["refused"])
                results.head = head
        except Ended as reason:
            results.add(piece, outcome="ended", why=f"no worker started: {reason}")
            continue
        began = time.monotonic()
        limit = min(piece.limit_s * (SLOWER if stand_in else 1), ends - began)
        try:
            follow(piece, worker, results, limit)
        except Ended as reason:
            results.add(piece, outcome="ended", why=f"after {time.monotonic() - began:.0f} s: {reason}")


def follow(piece: plan.Piece, worker: Worker, results: Results, limit_s: float) -> None:
    """Run one piece and write its messages until it ends."""
    began = time.monotonic()
    worker.ask(piece.name, limit_s)
    while True:
        answer = worker.next(began + limit_s + NOTICE_S - time.monotonic())
        if "end" in answer:
            results.add(piece, seconds=round(time.monotonic() - began, 1), **answer["end"])
            return
        results.add(piece, **answer["note"])


def words(options: argparse.Namespace) -> str:
    """Return the command as a reader would type it, without paths."""
    given = [f"--{name} …" for name in ("data", "weights") if getattr(options, name)]
    only = [f"--only {options.only}"] if options.only else []
    return " ".join(["python -m tests.gpu", *(["--stand-in"] if options.stand_in else []), *given, *only])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the worker ends, the table is written
    sys.exit(main())
