"""The command line: `metrix-bench run quick`. Every option is a setting of the grid or a place on disk.

    running   run, plan, trial, retry
    reading   status, logs, stop, report, power, trace, audit, verify, draw
    data      doctor, prepare
    embedding embed, export
    lists     list
    published published
    options   what several commands share

A command is a function whose parameters are its options; it returns the exit code. It imports what it needs when it
runs, so that `metrix-bench --help` answers at once.
"""

import argparse
import errno
import inspect
import io
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from harness.cli import data, embedding, lists, published, reading, running
from harness.cli.options import CLOSED, FAILED, INTERRUPTED, OK, WRONG_INPUT
from harness.errors import UserError, unknown

__all__ = ["CLOSED", "FAILED", "INTERRUPTED", "OK", "WRONG_INPUT", "main", "parser"]

BUG = "this is a bug in metrix-bench, not a mistake in the command: please report it with the lines above"


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done; 1: a trial failed, or the program has a bug; 2: wrong input; 130: interrupted; 141: output closed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not lose a result
    words = sys.argv[1:] if words is None else words
    arguments = _parse(words)
    arguments.words = tuple(words)
    try:
        names = inspect.signature(arguments.command).parameters
        code = arguments.command(**{name: getattr(arguments, name) for name in names})
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("metrix-bench: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or python would report the same error again on exit
        return CLOSED
    except Exception as error:
        sentence = _sentence(error, arguments)
        if arguments.debug or sentence is None:
            traceback.print_exc()
        print(f"metrix-bench: {sentence or BUG}", file=sys.stderr)
        return FAILED if sentence is None else WRONG_INPUT


def parser() -> argparse.ArgumentParser:
    """Return the commands and their options."""
    top = argparse.ArgumentParser(prog="metrix-bench", description="A fair benchmark of deep metric learning.")
    top.add_argument("--debug", action="store_true", help="show where in the program an error was raised")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for family in (running, reading, embedding, data, lists, published):
        family.add_commands(commands)
    return top


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command line. Print a message and raise SystemExit if they are wrong."""
    top = parser()
    for before, word in pairwise((top.prog, *words)):
        option = re.fullmatch(r"(--\w+)=\s*", word)
        if option or not word.strip():
            top.error(f"the value after {option[1] if option else before} is empty; give a value, or leave it out")
    arguments, rest = top.parse_known_args(words)
    if rest:
        command = arguments.parser
        options = [option for option in command._option_string_actions if option.startswith("--")]
        word = rest[0].partition("=")[0]
        command.error(unknown("option", word, options) if word.startswith("-") else f"unexpected argument {word!r}")
    return arguments


def _sentence(error: Exception, arguments: argparse.Namespace) -> str | None:
    """Return the message for an error that the user can fix; None for a bug in the program."""
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError):
        return None
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (isinstance(error.filename, str) and _is_named(Path(error.filename), arguments)):
        return f"{error.filename or 'the disk'}: {error.strerror}"
    return None


def _is_named(path: Path, arguments: argparse.Namespace) -> bool:
    """Return whether a path is in or above one that the command line names, the folder of runs, or the cache."""
    from harness.data.cache import default_folder

    path = Path(os.path.abspath(path))
    for named in (*_paths(arguments), "results/runs", default_folder()):
        place = os.path.abspath(named)
        if path.is_relative_to(place) or Path(place).is_relative_to(path):
            return True
    return False


def _paths(arguments: argparse.Namespace) -> Iterable[str | Path]:
    """Yield every argument that may be a path."""
    for name, value in vars(arguments).items():
        values = value if isinstance(value, list | tuple) and name != "words" else [value]
        yield from (item for item in values if isinstance(item, str | Path))
