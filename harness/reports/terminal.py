"""Terminal output: the leaderboard, plain tables, and a live view of a run.

On a terminal, a run is shown in a panel that is redrawn four times a second. Elsewhere, each event is one line.
NO_COLOR is respected, and printed text is never interpreted as markup.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.config import Trial
from harness.reports import wording
from harness.runs.live import Running, Tally

if TYPE_CHECKING:  # at run time it would import pandas, which most commands do without
    from harness.leaderboard.board import Block, Board

WIDEST = 100  # maximum width of a leaderboard, in characters
REFRESHES_PER_S = 4
RECENT = 5  # finished and failed trials that stay in the panel
MARK_STYLES = {"best": "bold", "second": "underline"}
STATE_STYLES = {"fail": "red", "n/a": "dim", "--": "yellow"}
LINE_EVERY_S = 30  # minimum time between two progress lines of a trial, without a panel


def console(stream: TextIO | None = None) -> Console:
    """Return a console on `stream` (None: standard output) that prints text literally.

    If the stream is not a terminal, lines are not wrapped, so that other programs can process them.
    """
    stream = stream or sys.stdout
    watched = _Console(file=stream, highlight=False, markup=False, emoji=False)
    return watched if watched.is_terminal else _Console(file=stream, highlight=False, markup=False, width=10_000)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the command line handle a closed pipe: rich would exit as if the program had failed."""
        raise BrokenPipeError


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], on: Console | None = None) -> None:
    """Print a plain table. Columns with only numbers are aligned to the right."""
    on = on or console()
    rows = [tuple("" if value is None else str(value) for value in row) for row in rows]
    sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        values = [row[number] for row in rows if number < len(row)]
        sheet.add_column(Text(name), justify="right" if _numbers(values) else "left", overflow="fold")
    for row in rows:
        sheet.add_row(*map(Text, row))
    on.print(Text(title, "bold"))  # not as a table title, which rich wraps to the width of the columns
    on.print(sheet if rows else Text("nothing", "dim"))


def _numbers(values: Sequence[str]) -> bool:
    """Return whether all values that are not empty are numbers, with an optional unit or %."""
    filled = [value.split()[0].rstrip("%×").replace(",", "") for value in values if value.strip()]
    return bool(filled) and all(value.removeprefix("-").replace(".", "", 1).isdigit() for value in filled)


def show(board: Board, on: Console | None = None) -> None:
    """Print a leaderboard: a table per block with its notes, then the caption."""
    from harness.leaderboard import captions

    on = on or console()
    width = min(on.width, WIDEST)
    on.print()
    title = Text(board.title, "bold")
    on.print(title.append(f"  {wording.progress(board)}", "yellow" if board.partial else "dim"))
    for block in board.blocks:
        on.print()
        on.print(Text(block.heading, "bold cyan"))
        on.print(_sheet(block), width=width)
        for note in wording.footnotes(block):
            on.print(Padding(Text(note, "yellow" if note.startswith("FAIR") else "dim"), (0, 1)), width=width)
        on.print(Padding(Text(" ".join(block.caption), "dim"), (0, 1)), width=width)
    on.print()
    caption = captions.of_board(board, styled=on.is_terminal and not on.is_dumb_terminal)
    on.print(Padding(Text(" ".join((*board.notes, *caption)), "dim"), (0, 1)), width=width)
    on.print()


def _sheet(block: Block) -> Table:
    lines = [wording.values(block, row) for row in block.rows]
    room = [_column_widths(*column) for column in zip(wording.columns(block), *lines, strict=True)]
    sheet = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    sheet.add_column(overflow="fold", min_width=14)
    for name, (front, behind) in zip(wording.columns(block), room, strict=True):
        sheet.add_column(Text(name.rjust(front + behind)), no_wrap=True)
    for number, group in enumerate(block.groups):
        if number:
            sheet.add_row()
        for row in group:
            sheet.add_row(*_line(block, row, room))
    if block.trained and block.floors:
        sheet.add_section()
    for row in block.floors:
        sheet.add_row(*_line(block, row, room), style="dim")
    return sheet


def _column_widths(name: str, *values: str) -> tuple[int, int]:
    """Return the width of the numbers of a column, and of the ± part after them."""
    parts = [value.partition(" ± ") for value in values]
    behind = max((len(sign + half) for _, sign, half in parts), default=0)
    return max(len(name) - behind, *(len(number) for number, _, _ in parts), 0), behind


def _line(block: Block, row: Any, room: Sequence[tuple[int, int]]) -> list[RenderableType]:
    """Return the cells of a row with aligned means. Intervals and costs are dim, states are highlighted."""
    name = Text(row.name + wording.below(row), "" if row.baseline or row.level == "floor" else "bold")
    line: list[RenderableType] = [Padding(name, (0, 0, 0, 2 * bool(row.baseline)))]
    printed = (wording.columns(block), wording.values(block, row), wording.marks(block, row), room)
    for column, value, marks, (front, _) in zip(*printed, strict=True):
        number, sign, half = value.partition(" ± ")
        cost = column in ("time", "passes", "n")
        style = STATE_STYLES.get(value) or ("yellow" if column == "n" and "/" in value else "dim" if cost else "")
        style = " ".join([style, *(MARK_STYLES[mark] for mark in marks)]).strip()
        line.append(Text(number.rjust(front), style).append(sign + half, "dim"))
    return line


@contextmanager
def progress(title: str, on: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar and yield a function to call with (done, total), as often as needed.

    If the output is not a terminal, print a line at every tenth.
    """
    on, shown = on or console(), {"at": 0.0, "tenths": 0}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=on,
        transient=True,
        disable=not on.is_terminal,
    )
    task = bar.add_task(title, total=None)

    def step(done: int, total: int) -> None:
        now = time.monotonic()
        if on.is_terminal:
            if now - shown["at"] >= 1 / REFRESHES_PER_S or done == total:
                shown["at"] = now
                bar.update(task, completed=done, total=total)
        elif (tenths := 10 * done // total) > shown["tenths"]:
            shown["tenths"] = tenths
            on.print(f"{title}: {done} of {total}")

    with bar:
        yield step


def view(stream: TextIO | None = None) -> View:
    """Return a view of a run on `stream` (None: standard output): a live panel on a terminal, lines otherwise."""
    return View(console(stream))


class View(Tally):
    """A live view of a run. Every call returns at once and may come from any thread.

    Scores are fractions in [0, 1]: validation MAP@R while a trial runs (None without validation), and `metric` on the
    test split, such as R@1, when it has finished. Always call `end`, also after an error: it restores the terminal.
    """

    def __init__(self, on: Console, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._console = on
        self._seen: dict[str, Running] = {}
        self._recent: deque[tuple[str, str, str, str]] = deque(maxlen=RECENT)
        self._live: Live | None = None

    def begin(self, total: int, done: int, slots: int) -> None:
        """Start the view: `total` trials, `done` of them before this run, `slots` at a time."""
        super().begin(total, done, slots)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._panel,
                console=self._console,
                refresh_per_second=REFRESHES_PER_S,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        else:
            self._print(Text(f"{total} trials, {done} already done, {slots} at a time"))

    def started(self, trial: Trial, where: str, attempt: int) -> None:
        """Show that a trial started at `where` (a node or GPU, may be empty) for the `attempt`-th time."""
        with self.lock:
            super().started(trial, where, attempt)
            self._seen[trial.id] = self.running[trial.id]
        again = f"  attempt {attempt}" if attempt > 1 else ""
        self._line("started", trial.id, again + (f"  on {where}" if where else ""))

    def progress(self, trial_id: str, epoch: int, epochs: int, loss: float, score: float | None) -> None:
        """Show that a trial finished an epoch."""
        with self.lock:
            super().progress(trial_id, epoch, epochs, loss, score)
            if (running := self.running.get(trial_id)) is None:
                return
            now = self.clock()
            due = now - max(running.printed, running.since) >= LINE_EVERY_S
            if due:
                running.printed = now
        if due:
            validated = "" if score is None else f"  validation MAP@R {100 * score:.1f}"
            self._line("running", trial_id, f"  epoch {epoch}/{epochs}  loss {loss:.4g}{validated}")

    def finished(self, trial_id: str, score: float, seconds: float, metric: str = "R@1") -> None:
        """Show that a trial finished with this score in `metric` after `seconds`."""
        text = f"  {metric} {100 * score:.1f} in {wording.seconds(seconds)}"
        with self.lock:
            super().finished(trial_id, score, seconds, metric)
            self._remember("✓", "green", trial_id, text)
            count = f"  [{self.done}/{self.total}]"
        self._line("finished", trial_id, text + count)

    def failed(self, trial_id: str, reason: str, attempt: int, will_retry: bool) -> None:
        """Show that a trial failed, and whether it will be retried."""
        reason = (reason.strip().splitlines() or ["no reason given"])[0]
        with self.lock:
            super().failed(trial_id, reason, attempt, will_retry)
            sign, style = ("↻", "yellow") if will_retry else ("✗", "red")
            self._remember(sign, style, trial_id, f"  attempt {attempt}: {reason}" if will_retry else f"  {reason}")
        again = "; retrying" if will_retry else ""
        self._line("failed", trial_id, f"  attempt {attempt}: {reason}{again}")

    def note(self, sentence: str) -> None:
        """Print a sentence that stays on the screen."""
        self._print(Text(sentence, "yellow"))

    def end(self, interrupted: bool) -> None:
        """Close the view: keep the last state of the panel, and print a summary of the run."""
        with self.lock:
            live, self._live = self._live, None
            given_up = dict(self.given_up)
        if live is not None:
            live.stop()
        for trial_id, reason in given_up.items():
            self._print(Text(f"✗ {self._name(trial_id)}: {reason}", "red"))
        took = _clock_time(self.clock() - self.began)
        text = f"{self.done} of {self.total} trials done, {self.completed} of them in this run, in {took}"
        text += f"; {len(given_up)} failed" if given_up else ""
        text += "; interrupted" if interrupted else ""
        self._print(Text(text, "bold"))

    def _name(self, trial_id: str) -> str:
        """Return the name of a trial: place, arm, seed; its id if it never started."""
        seen = self._seen.get(trial_id)
        return f"{seen.place} {seen.name}" if seen else trial_id

    def _remember(self, sign: str, style: str, trial_id: str, text: str) -> None:
        """Keep an event for the panel."""
        self._recent.append((sign, style, trial_id, text))

    def _line(self, word: str, trial_id: str, text: str) -> None:
        """Print one line for one event, unless a panel shows it."""
        if self._live is None:
            self._print(Text(f"{word:9} {self._name(trial_id)}{text}"))

    def _print(self, text: Text) -> None:
        """Print above the panel, if there is one.

        Never call it while holding the lock: the thread of the panel takes our lock inside its own, so it would
        deadlock.
        """
        self._console.print(text)

    def _panel(self) -> Panel:
        with self.lock:
            parts = [self._head()]
            if self.running:
                parts += [Text(), self._table()]
            if self._recent:
                parts += [Text(), *(self._clipped(self._event(*event)) for event in self._recent)]
            return Panel(Group(*parts), title=Text("metrix-bench", "bold"), border_style="dim", padding=(0, 1))

    def _event(self, sign: str, style: str, trial_id: str, text: str) -> Text:
        """Return an event as one line, without dataset and backbone if all trials share them."""
        seen = self._seen.get(trial_id)
        name = seen.name if seen and len(self._places) == 1 else self._name(trial_id)
        return Text(f"{sign} ", style).append(name).append(text, "dim")

    @property
    def _places(self) -> set[str]:
        return {seen.place for seen in self._seen.values()}

    def _clipped(self, line: Text) -> Text:
        line.truncate(max(self._console.width - 4, 10), overflow="ellipsis")
        return line

    def _head(self) -> Table:
        left = self.time_left()
        bar = ProgressBar(total=max(self.total, 1), completed=self.done, complete_style="cyan")
        counts = Text(f"{self.done}/{self.total}", "bold")
        if self.given_up:
            counts.append(f"  {len(self.given_up)} failed", "red")
        if self.retried:
            counts.append(f"  {self.retried} retried", "yellow")
        times = Text(_clock_time(self.clock() - self.began), "dim")
        times.append("  about " + _clock_time(left) + " left" if left is not None else "  time left: estimating")
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(bar, counts, times)
        return head

    def _table(self) -> Table:
        running = sorted(self.running.values(), key=lambda trial: trial.since)
        room = max(self._console.height - RECENT - 9, 3)
        several = len(self._places) > 1
        somewhere = any(trial.where for trial in running)
        sheet = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim", pad_edge=False)
        sheet.add_column("running", ratio=1, no_wrap=True, overflow="ellipsis")
        for name in ("epoch", "loss", "val. MAP@R", "time"):
            sheet.add_column(name, justify="right", no_wrap=True)
        if somewhere:
            sheet.add_column("where", no_wrap=True)
        for trial in running[:room]:
            name = Text(trial.name)
            if several:
                name = Text.assemble((f"{trial.place} ", "dim"), trial.name)
            if trial.attempt > 1:
                name.append(f" (attempt {trial.attempt})", "yellow")
            sheet.add_row(
                name,
                f"{trial.epoch}/{trial.epochs}" if trial.epochs else "",
                "" if trial.loss is None else f"{trial.loss:.4g}",
                "" if trial.score is None else f"{100 * trial.score:.1f}",
                Text(_clock_time(self.clock() - trial.since), "dim"),
                *([Text(trial.where, "dim")] if somewhere else []),
            )
        if len(running) > room:
            sheet.add_row(Text(f"and {len(running) - room} more", "dim"))
        return sheet


def _clock_time(value: float) -> str:
    """Return a duration such as `0:07`, `12:31` or `1:02:09`."""
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
