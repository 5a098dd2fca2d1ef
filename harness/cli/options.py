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
DATA = "folder of the dataset; not needed for an embedded one"
DEVICE = "cpu, cuda, cuda:1, … (default: a GPU if there is one)"
WEIGHTS = "file of weights for the grid's pretrained network, in place of the published ones"
RUN = "run folder, or s3://bucket/prefix (default: results/runs/GRID)"


class Once(argparse.Action):
    """Keep the value of an option. Reject an option that is given twice, whose first value would be lost."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = namespace.__dict__.setdefault("given", set())
        if option_string is not None and option_string in given:
            raise argparse.ArgumentError(self, "given twice")
        given.add(option_string)
        self.store(namespace, values)

    def store(self, namespace: argparse.Namespace, values: Any) -> None:
        setattr(namespace, self.dest, values)


class Narrow(Once):
    """Collect the names to keep of each list of a grid: {"losses": ["contrastive"]}."""

    def store(self, namespace: argparse.Namespace, values: Any) -> None:
        field = self.option_strings[0].removeprefix("--")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), field: values})


def add_command(commands, function: Callable[..., int], name: str, words: str) -> argparse.ArgumentParser:
    """Add the command `name`, which calls `function` with the options that are its parameters."""
    command = commands.add_parser(
        name, allow_abbrev=False, help=words, description=(words[0].upper() + words[1:] + ".")
    )
    command.register("action", None, Once)
    command.set_defaults(command=function, parser=command)
    command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return command


def add_grid(command: argparse.ArgumentParser) -> None:
    """Add a grid and the options that change it: `grid`, `overrides`, `only`, `data`, `cache`, `weights`."""
    command.add_argument("grid", help=f"YAML file, or one of {', '.join(shipped())}")
    command.add_argument("--data", type=Path, metavar="FOLDER", help=DATA)
    command.add_argument("--cache", type=Path, metavar="FOLDER", help=CACHE)
    command.add_argument("--weights", type=Path, metavar="FILE", help=WEIGHTS)
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
            help=f"keep only these {field} of the grid",
        )


def add_cluster(command: argparse.ArgumentParser) -> None:
    """Add the options for where a grid runs: parameters `address`, `device`."""
    command.add_argument(
        "--address",
        type=_address,
        metavar="auto|HOST:PORT|ray://HOST:PORT",
        help="ray cluster: join the one of this machine or at HOST:PORT, or send the command to ray://HOST:PORT "
        "(default: run on this machine alone)",
    )
    command.add_argument("--device", type=_cpu, metavar="cpu", help="use no GPU (default: use all of them)")


def place(text: str) -> str | Path:
    """Read a run folder, or the URL of a bucket, whose double slash a Path would collapse."""
    from harness.runs import storage

    try:
        return storage.named(text)
    except UserError as error:  # its message hides credentials; argparse would print the text for any other error
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a function that reads a whole number from `least` to `most`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {wanted}")
        return int(text)

    return read


def names(text: str) -> list[str]:
    """Read names separated by commas; a comma inside brackets belongs to an arm."""
    entries = [name.strip() for name in re.split(r",(?![^\[]*\])", text)]
    if not all(entries):
        raise argparse.ArgumentTypeError(f"{text!r}: a name is missing next to a comma")
    return entries


def option(text: str) -> tuple[str, Any]:
    """Read `key=value`, an option of a dataset; numbers, true and false get their JSON types."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def warn(sentence: str) -> None:
    """Print a message to standard error, apart from the results."""
    print(sentence, file=sys.stderr)


def _address(text: str) -> str:
    if not re.fullmatch(r"auto|ray://.+|[^/]+:\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; expected auto, HOST:PORT or ray://HOST:PORT")
    return text


def _cpu(text: str) -> str:
    if text != "cpu":
        raise argparse.ArgumentTypeError(
            f"{text!r}: the only choice is cpu; without --device a grid uses all GPUs, and metrix-bench trial runs "
            "one arm on one device"
        )
    return text
