"""Options that several commands share, the types that read their values, and the exit codes."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.grids import shipped

OK, FAILED, WRONG_INPUT, INTERRUPTED, CLOSED = 0, 1, 2, 130, 141
LISTS = ("losses", "levels", "backbones", "datasets", "arms", "seeds")
CACHE = "folder for decoded images (default: ~/.cache/metrix-bench)"
DATA = "folder of the dataset, for those that are not embedded"
DEVICE = "cpu, cuda, cuda:1, … (default: a GPU where there is one)"
RUN = "run folder, or s3://bucket/prefix (default: results/runs/GRID)"


class Once(argparse.Action):
    """Keep the value of an option, and refuse one that is given twice, of which the first would be lost."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = namespace.__dict__.setdefault("given", set())
        if option_string is not None and option_string in given:
            raise argparse.ArgumentError(self, "it is given twice")
        given.add(option_string)
        self.store(namespace, values)

    def store(self, namespace: argparse.Namespace, values: Any) -> None:
        setattr(namespace, self.dest, values)


class Narrow(Once):
    """Collect the names that each list of a grid is narrowed to: {"losses": ["contrastive"]}."""

    def store(self, namespace: argparse.Namespace, values: Any) -> None:
        field = self.option_strings[0].removeprefix("--")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), field: values})


def add_command(commands, function: Callable[..., int], name: str, words: str) -> argparse.ArgumentParser:
    """Add the command `name`, which calls `function` with the values of the options that it has parameters for."""
    command = commands.add_parser(
        name, allow_abbrev=False, help=words, description=(words[0].upper() + words[1:] + ".")
    )
    command.register("action", None, Once)
    command.set_defaults(command=function, parser=command)
    command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return command


def add_grid(command: argparse.ArgumentParser) -> None:
    """Add a grid, and what changes it: parameters `grid`, `overrides`, `only`, `data`, `cache`."""
    command.add_argument("grid", help=f"a YAML file, or one of {', '.join(shipped())}")
    command.add_argument("--data", type=Path, help=DATA)
    command.add_argument("--cache", type=Path, help=CACHE)
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as epochs=20",
    )
    command.set_defaults(only={})
    for field in LISTS:
        command.add_argument(
            f"--{field}",
            dest="only",
            action=Narrow,
            type=names,
            metavar="A,B",
            default=argparse.SUPPRESS,
            help=f"only these of the grid's {field}",
        )


def add_cluster(command: argparse.ArgumentParser) -> None:
    """Add where a grid runs: parameters `address`, `device`."""
    command.add_argument(
        "--address",
        type=_address,
        metavar="auto|HOST:PORT|ray://HOST:PORT",
        help="a ray cluster: that of this machine, or one to send the command to (default: this machine alone)",
    )
    command.add_argument("--device", type=_cpu, metavar="cpu", help="leave GPUs alone (default: use them)")


def place(text: str) -> str | Path:
    """Read a run folder, or the URL of a bucket as it is written: a Path would make one slash of two."""
    from harness.runs import storage

    try:
        return storage.named(text)
    except UserError as error:  # its words hide credentials; argparse repeats the text on any other error
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number from `least` to `most`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            upper = "" if most is None else f" to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}{upper}")
        return int(text)

    return read


def names(text: str) -> list[str]:
    """Read names between commas; a comma inside brackets belongs to an arm."""
    found = [name.strip() for name in re.split(r",(?![^\[]*\])", text)]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r}: a name is missing beside a comma")
    return found


def option(text: str) -> tuple[str, Any]:
    """Read an option of a dataset; numbers, true and false are read as such."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not written KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def warn(sentence: str) -> None:
    """Print a sentence that is not a result."""
    print(sentence, file=sys.stderr)


def _address(text: str) -> str:
    if not re.fullmatch(r"auto|ray://.+|[^/]+:\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; it is auto, HOST:PORT or ray://HOST:PORT")
    return text


def _cpu(text: str) -> str:
    if text != "cpu":
        raise argparse.ArgumentTypeError(
            f"{text!r}: a grid runs on every GPU there is, and --device cpu leaves them alone; metrix-bench trial "
            "runs one arm on one device"
        )
    return text
