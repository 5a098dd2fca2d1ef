"""The command list: the names that a grid can use."""

import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from harness.cli.options import OK, add_command
from harness.errors import UserError, unknown


@dataclass(frozen=True)
class Listing:
    """A table whose first column holds names, and the lines to print below it: (name, line).

    A line with the name "" belongs to the whole table.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    below: Sequence[tuple[str, str]] = ()


def add_commands(commands) -> None:
    """Add the command of this file."""
    command = add_command(commands, print_list, "list", "list the names that a grid can use")
    command.add_argument("what", choices=sorted(LISTINGS), help="kind of names to list")
    command.add_argument("pattern", nargs="?", help="list only names like 'resnet*'; for stages, the backbone")
    command.add_argument(
        "--format", choices=("terminal", "markdown"), default="terminal", help="how to print the list"
    )


def print_list(what: str, pattern: str | None, format: str = "terminal") -> int:
    """Print the names that match a pattern, with a description of each."""
    from harness.reports import terminal

    listing = _stages(pattern) if what == "stages" else LISTINGS[what]()
    rows = listing.rows
    if pattern is not None and what != "stages":
        rows = [row for row in rows if fnmatchcase(row[0], pattern)]
        if not rows:
            raise UserError(unknown(what, pattern, [row[0] for row in listing.rows]))
    if format == "markdown":
        from harness.reports.formats.markdown import plain_table

        print(plain_table(listing.columns, rows))
        return OK
    terminal.table(listing.title, listing.columns, rows)
    names = {"", *(row[0] for row in rows)}
    width = min(shutil.get_terminal_size().columns, 120)
    for name, line in listing.below:
        if name in names:
            print(textwrap.fill(line, width, subsequent_indent="  "))
    return OK


def _losses() -> Listing:
    import baselines

    known = [baselines.describe(name) for name in baselines.names()]
    rows = [
        (loss.name, loss.paper, _settings(loss.parameters), "yes" if loss.metrix else "no", ", ".join(loss.learnable))
        for loss in known
    ]
    why = [(loss.name, f"{loss.name} has no Metrix form: {loss.why_no_metrix}") for loss in known if not loss.metrix]
    return Listing("losses", ("name", "paper", "hyperparameters", "Metrix", "learns"), rows, why)


PUBLISHED, ADAPTED = "●", "○"


def _levels() -> Listing:
    from harness.config import METRIX
    from metrix import levels

    known = [levels.describe(name) for name in levels.names()]
    rows = [("baseline", "no mixing: the loss alone", "", "")]
    options = {one.name: "" if one.name in METRIX else _settings(one.parameters) for one in known}
    rows += [(one.name, one.summary, one.paper, options[one.name]) for one in known]
    shared = _settings(known[0].parameters)
    below = [("", f"options of each level of Metrix: {shared}; stage says which feature maps are mixed")]
    for one in known:
        for reason in dict.fromkeys(one.refuses.values()):
            kinds = [kind for kind in one.refuses if one.refuses[kind] == reason]
            below.append((one.name, f"{one.name} does not take losses over {' or '.join(kinds)}: it {reason}"))
    return Listing("levels", ("name", "description", "paper", "options"), rows, below)


def _forms() -> Listing:
    import baselines
    from metrix import levels

    columns, rows, below = levels.names(), [], [("", f"{PUBLISHED} published together  {ADAPTED} adapted here")]
    for name in baselines.names():
        reasons = {level: levels.refusal(level, name) for level in columns}
        known = {level: name in levels.describe(level).published_with for level in columns}
        rows.append((name, *("" if reasons[one] else PUBLISHED if known[one] else ADAPTED for one in columns)))
        below += [(name, reason) for reason in dict.fromkeys(filter(None, reasons.values()))]
    return Listing("which level takes which loss", ("loss", *columns), rows, below)


def _metrics() -> Listing:
    from harness.evaluation import metrics

    def description(summary: str) -> str:
        text = summary.partition(": (")[0].removeprefix("Return ")
        return text[:1].lower() + text[1:]

    rows = [(metric.title.format(k="K"), description(metric.summary)) for metric in metrics.load_all()]
    return Listing("metrics", ("name", "description"), rows)


def _datasets() -> Listing:
    from harness.data import datasets

    rows = [
        (dataset.name, dataset.title.removesuffix("."), "--data" if dataset.needs_data else "embedded")
        for dataset in map(datasets.describe, datasets.names())
    ]
    return Listing("datasets", ("name", "description", "data"), rows)


def _backbones() -> Listing:
    from harness.training import backbones

    return Listing("backbones", ("name",), [(name,) for name in backbones.names()])


def _stages(backbone: str | None = None) -> Listing:
    from harness.training import anatomy

    if backbone is None:
        raise UserError("list stages needs a backbone, as in metrix-bench list stages resnet50")
    return Listing(f"stages of {backbone}", ("stage",), [(stage,) for stage in anatomy.stages(backbone)])


def _grids() -> Listing:
    from harness import grids

    rows = [
        (name, str(grids.read(path).get("about", "")).strip().removesuffix("."))
        for name, path in grids.shipped().items()
    ]
    return Listing("grids", ("name", "description"), rows)


def _settings(values: dict[str, Any]) -> str:
    """Return settings and their values as an arm writes them, to four digits: `margin=0.5, mining=none`."""
    from harness.grids.notation import brackets

    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
    return brackets(rounded)[1:-1].replace(",", ", ")


LISTINGS: dict[str, Callable[[], Listing]] = {
    "losses": _losses,
    "levels": _levels,
    "forms": _forms,
    "metrics": _metrics,
    "datasets": _datasets,
    "backbones": _backbones,
    "stages": _stages,
    "grids": _grids,
}
