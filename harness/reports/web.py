"""The leaderboard as one web page: no network, sortable, each row unfolds to its curves and records."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.record import Record
from harness.reports import _wording as wording
from harness.reports import place
from harness.tables import Block, Cell, Leaderboard, Row

SUFFIX = ".html"
ALWAYS = True
TEMPLATE = Path(__file__).with_name("page.html")
WIDTH, HEIGHT, LEFT, BOTTOM = 320, 150, 38, 18  # of a chart and of the room for its labels, in its own units


def render(leaderboard: Leaderboard) -> str:
    """The page. Names are escaped by the template, which escapes everything."""
    views = [BlockView(block) for block in leaderboard.blocks]
    return _template().render(board=leaderboard, blocks=views, wording=wording, pretty=pretty, breakable=breakable)


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write leaderboard.html."""
    return place(folder, SUFFIX, render(leaderboard))


@cache
def _template():
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def pretty(text: str) -> str:
    """Text for print: no line ends between a number and its sign."""
    return text.replace(" %", "\u00a0%").replace("± ", "±\u00a0").replace("n = ", "n\u00a0=\u00a0")


def breakable(name: str):
    """A name, escaped, that may go on in the next line behind its signs."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[_,\[])", "<wbr>", str(escape(name))))


@dataclass(frozen=True)
class Bar:
    """An interval on its column's scale, percent of the width; `low` and `high` are None without an interval."""

    at: float
    low: float | None
    high: float | None
    reference: float | None = None


@dataclass(frozen=True)
class Score:
    """One cell of the page: what is printed, what it sorts by, and its bar."""

    number: str
    half: str
    key: float | None
    bar: Bar | None = None


@dataclass(frozen=True)
class Chart:
    """A small line chart in its own units: one polyline a seed, those of the baseline behind."""

    title: str
    lines: tuple[str, ...]
    behind: tuple[str, ...]
    chosen: tuple[tuple[float, float], ...]
    ticks: tuple[tuple[float, str], ...]
    last_epoch: int


class BlockView:
    """A block as the template needs it: scales shared by its rows, so that bars and curves can be compared."""

    def __init__(self, block: Block):
        self.block = block
        self.heading = wording.heading(block)
        self.metrics = wording.shown(block)
        self.digits = {metric: wording.decimals(block, metric) for metric in self.metrics}
        self.scales = {
            metric: scale(_ends(row.cells.get(metric) for row in block.trained)) for metric in self.metrics
        }
        self.spans = {metric: self._span(metric) for metric in self.metrics}
        curves = [e.validation.get(self.curve) for row in block.trained for r in row.records for e in r.curve]
        self.validation = scale([value for value in curves if value is not None])
        self.baselines = {id(row): group[0] for group in block.groups for row in group}

    curve = "MAP@R"

    def _span(self, metric: str) -> float:
        """The largest distance from zero that a difference or its interval reaches."""
        cells = [cell for row in self.block.trained if (cell := row.cells.get(metric)) and cell.paired]
        return max((abs(c.difference) + (c.difference_half or 0) for c in cells), default=0.0) or 0.01

    def score(self, row: Row, metric: str) -> Score:
        """The mean with its interval; the bar of a variant also shows where its baseline is."""
        cell = row.cells.get(metric)
        if cell is None:
            return Score("" if row.cells else wording.state(row), "", None)
        number, _, half = wording.score(cell, self.digits[metric]).partition(" ± ")
        low, high = self.scales[metric]

        def at(value: float) -> float:
            return round(100 * (value - low) / (high - low), 2)

        base = self.baselines[id(row)].cells.get(metric) if row.indent else None
        bar = None
        if low <= cell.mean <= high:
            ends = (None, None) if cell.half is None else (at(cell.mean - cell.half), at(cell.mean + cell.half))
            bar = Bar(at(cell.mean), *ends, base and at(base.mean))
        return Score(number, half, cell.mean, bar)

    def difference(self, row: Row, metric: str) -> Score | None:
        """The paired difference on a scale with zero in the middle; None where there is none."""
        cell = row.cells.get(metric)
        if cell is None or cell.difference is None:
            return None
        number, _, half = wording.difference(cell, self.digits[metric]).partition(" ± ")
        span = self.spans[metric]

        def at(value: float) -> float:
            return round(50 + 50 * value / span, 2)

        reach = cell.difference_half
        ends = (None, None) if reach is None else (at(cell.difference - reach), at(cell.difference + reach))
        return Score(number, half, cell.difference, Bar(at(cell.difference), *ends, 50))

    def charts(self, row: Row) -> list[Chart]:
        """Training loss and validation score by epoch, of every seed; nothing for a row that was not trained."""
        if not any(record.curve for record in row.records):
            return []
        losses = scale([epoch.loss for record in row.records for epoch in record.curve])
        own = self.baselines.get(id(row))
        behind = own.records if own is not None and own is not row else ()
        return [
            chart("training loss", row.records, (), lambda epoch: epoch.loss, losses),
            chart(
                f"validation {self.curve}, percent",
                row.records,
                behind,
                lambda epoch: epoch.validation.get(self.curve),
                self.validation,
                100,
            ),
        ]

    def settings(self, row: Row) -> list[tuple[str, str]]:
        """What the arm is: its hyperparameters, the step sizes that its schedule reads, and how Metrix mixes."""
        if not row.records and not row.failures:
            return []
        trial = (row.records[0] if row.records else row.failures[0]).trial
        shown = {**trial.arm.options, **row.steps}
        if trial.arm.metrix is not None:
            shown |= {f"metrix.{name}": value for name, value in trial.arm.metrix.model_dump().items()}
        unread = () if shown.get("schedule") == "step" else ("step_epochs", "gamma")
        return [
            (name, value if isinstance(value, str) else json.dumps(value))
            for name, value in shown.items()
            if value is not None and name not in unread
        ]

    def validation_score(self, record: Record) -> str:
        """The validation score that the checkpoint was chosen by."""
        value = record.validation.get(self.curve)
        return "" if value is None else f"{100 * value:.1f}"


def _ends(cells: Iterable[Cell | None]) -> list[float]:
    """The means with the ends of their intervals."""
    return [
        end for cell in cells if cell for half in [cell.half or 0.0] for end in (cell.mean - half, cell.mean + half)
    ]


def scale(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a twentieth of room on either side; never empty."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.05 * (high - low) or 0.01
    return low - room, high + room


def ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers between `low` and `high`: multiples of 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= 4)
    return [round(step * n, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def chart(title, records, behind, value, bounds, factor: float = 1) -> Chart:
    """A line of `value(epoch)` a record within `bounds`, `behind` those to compare with; chosen epochs are dots."""
    low, high = bounds
    epochs = max(epoch.epoch for record in (*records, *behind) for epoch in record.curve)

    def point(epoch) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 6) * (epoch.epoch - 1) / max(epochs - 1, 1)
        return round(x, 1), round(height(value(epoch)), 1)

    def height(number: float) -> float:
        return (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - 6) * (number - low) / (high - low)

    def line(record: Record) -> str:
        return " ".join("{:g},{:g}".format(*point(epoch)) for epoch in record.curve if value(epoch) is not None)

    return Chart(
        title=title,
        lines=tuple(line(record) for record in records if record.curve),
        behind=tuple(line(record) for record in behind if record.curve),
        chosen=tuple(
            point(epoch)
            for record in records
            for epoch in record.curve
            if epoch.epoch == record.selected_epoch and value(epoch) is not None
        ),
        ticks=tuple(
            (round(height(number / factor), 1), f"{number:g}".replace("-", "−"))
            for number in ticks(factor * low, factor * high)
        ),
        last_epoch=epochs,
    )
