"""`--address ray://head:10001`: the same command on the head of a cluster, its lines relayed to this terminal.

A driver must run on a node of its cluster. So that a laptop can start a grid, the command is sent to the head node
with the texts of the grid files, and runs there as if it were typed there. All other paths are those of the cluster.
The command is a process of its own there, and goes on when the laptop is closed.
"""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO, TypeGuard

from harness.errors import UserError
from harness.launch import environment, scratch
from harness.runs.errors import RunError

SOURCES = Path(__file__).parent.parent.parent
CONNECT_ATTEMPTS = 3
LINES_EVERY_S = 0.5


def is_remote(address: str | None) -> TypeGuard[str]:
    """Return whether a command with this address runs on the head of a cluster instead of here."""
    return address is not None and address.startswith(environment.CLIENT)


def words_there(words: Sequence[str], place: str | Path | None, **paths: Path | None) -> list[str]:
    """Return the words of a command line as the head of a cluster runs it: on its own cluster.

    `paths` are those of other options, by name. Raise UserError where one of them, or the run folder `place`, depends
    on where the command runs.
    """
    words = list(words)
    at = next(i for i, word in enumerate(words) if word.startswith("--address"))
    words[at : at + (1 if "=" in words[at] else 2)] = ["--address", "auto"]
    if place is None or (isinstance(place, Path) and not place.is_absolute()):
        raise UserError(
            f"the run folder {place or 'results/runs/…'} would be looked up on the head of the cluster: give an "
            "absolute path there, or a bucket"
        )
    for option, path in paths.items():
        if path is not None and not path.is_absolute():
            raise UserError(f"--{option} {path} is looked up on the head of the cluster: give an absolute path there")
    return words


def relay(address: str, words: Sequence[str], files: Mapping[str, str], screen: TextIO = sys.stdout) -> int:
    """Run `metrix-bench WORDS` on the head of the cluster at `address` and return its exit code.

    `files` are texts to send along: where a word, or one of the texts, names one of them, the head reads that text.
    Ctrl-C here is Ctrl-C there. A second one, or a lost connection, leaves the command running, and `metrix-bench
    status` and `stop` still reach it. Raise RunError where the head cannot be reached, or no longer, and for a grid
    that includes a file outside its folder.
    """
    words, files = portable(words, files)
    environment.prepare(address)
    import ray
    from ray.exceptions import RayError

    for attempt in range(CONNECT_ATTEMPTS):
        try:
            ray.init(address, logging_level="ERROR")  # pyright: ignore[reportArgumentType] (ray takes names too)
            break
        except (ConnectionError, ValueError, RuntimeError, ImportError, RayError) as error:
            if "Initialization failure" in str(error) and attempt + 1 < CONNECT_ATTEMPTS:
                continue  # the head forks a process for each client, beside threads of grpc, and some die at once
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"{address} cannot be reached ({first}): is it the client port of a head (10001), is ray[client] "
                "installed on both sides, and is the cluster's token here (RAY_AUTH_TOKEN_PATH)?"
            ) from None
    try:
        # Detached, or the command would end with this connection.
        head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(Command)
        name = f"metrix-bench-{secrets.token_hex(4)}"
        command = head.options(name=name, namespace="metrix-bench", lifetime="detached").remote(
            list(words), dict(files)
        )
        code = _print_lines(ray, command, screen)
        ray.kill(command)  # pyright: ignore[reportArgumentType] (ray types what it returns as a proxy)
        return code
    except (ConnectionError, RayError) as error:
        raise RunError(
            f"the connection to {address} is lost ({str(error).splitlines()[0]}); if the head is alive, the command "
            "goes on there: metrix-bench status RUN on any machine that sees the run shows it"
        ) from None
    finally:
        ray.shutdown()


def portable(words: Sequence[str], files: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return words and files with names that stay within the folder in which the head writes them.

    The grid, which is the first file, may lie anywhere and gets its last name. What it includes is named from its
    folder and keeps that name. Raise RunError where that is absolute or leads upwards.
    """
    grid, *included = files or [""]
    if out := [name for name in included if _leads_out(name)]:
        raise RunError(
            f"the grid includes {', '.join(out)}, which cannot be sent to the head of a cluster: name included grids "
            "by a path below the folder of the grid"
        )
    short = Path(grid).name
    named = {short: files[grid], **{name: files[name] for name in included}} if files else {}
    return [short if files and word == grid else word for word in words], named


def _leads_out(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def _print_lines(ray, command, screen: TextIO) -> int:
    """Print the lines of a command as they come, and return its exit code."""
    interrupts = 0
    while True:
        try:
            text, code = ray.get(command.next.remote(LINES_EVERY_S))
            print(text, end="", file=screen, flush=True)
            if code is not None:
                return code
        except KeyboardInterrupt:
            interrupts += 1
            if interrupts > 1:
                raise
            ray.get(command.interrupt.remote())


class Command:
    """A command that runs on the head. It writes to a file, so it goes on when nobody reads its output."""

    def __init__(self, words: list[str], files: dict[str, str]):
        import ray

        self._scratch = scratch.make("head")
        folder = self._scratch.folder
        for name, text in files.items():
            path = folder / "grids" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        # With the environment that ray gave this worker, the driver would take itself for a worker too.
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_JOB", "RAY_RAYLET"))}
        if (SOURCES / "pyproject.toml").exists():  # a checkout, which need not be installed
            clean["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SOURCES), clean.get("PYTHONPATH"))))
        clean["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address  # `auto` is this cluster, not another one here
        (folder / "grids").mkdir(exist_ok=True)
        output = folder / "output"
        with output.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.cli", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder / "grids",
                env=clean,
                start_new_session=True,
                pass_fds=[self._scratch.lock],  # it may outlive this process
            )
        self._output = output.open(encoding="utf-8", errors="replace")

    def next(self, seconds: float) -> tuple[str, int | None]:
        """Return the output since the last call, after `seconds` at most, and the exit code once it has ended."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        text = self._output.read()
        if code is not None:
            self._scratch.remove()
        return text, code

    def interrupt(self) -> None:
        """Stop it cleanly, as Ctrl-C does."""
        self._process.send_signal(signal.SIGTERM)
