"""Figures for papers, drawn from leaderboards and from single trials. Only this file imports matplotlib.

Colours and markers are those of `looks`. Fonts are embedded. No date is written, so equal records give equal files.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.fairness.protocols import FAIR
from harness.leaderboard.board import Block, Board, record_ids
from harness.leaderboard.frame import ReportError
from harness.leaderboard.notes import listed
from harness.leaderboard.statistics import places
from harness.reports import wording
from harness.reports.looks import in_order, marker
from harness.runs.record import Record

COLORS = ("#0072B2", "#D55E00", "#009E73")
ENDINGS = (".pdf", ".svg", ".png")
COLUMN_INCHES = 3.25
WIDTHS = {"1col": COLUMN_INCHES, "2col": 6.75}  # one column and a full page at most venues
ROW_INCHES = 0.155
SMALLEST_POINTS = 4.5  # of text
FEW_LEVELS = 5  # more of them need slanted names, and a legend below the axes
MOST_ROWS = 60  # per figure: more cannot be read


def draw_board(board: Board, folder: Path, endings: Sequence[str] = (".pdf", ".svg")) -> list[Path]:
    """Draw every figure of every block, for one and for two columns, as `<dataset>-<backbone>-<figure>-1col.pdf`.

    A figure is left out if a block has too few results for it: no difference for the forest, one level for the heat
    map, one row for the cost. So is a heat map with more levels than its width holds. Only the first MOST_ROWS
    trained rows of a block are drawn.
    """
    paths = []
    for number, block in enumerate(board.blocks, 1):
        same_place = sum((b.dataset, b.backbone) == (block.dataset, block.backbone) for b in board.blocks)
        place = [block.dataset, block.backbone, *([str(number)] if same_place > 1 else [])]
        for name, draw in FIGURES.items():
            for width, inches in WIDTHS.items():
                stem = re.sub(r"[^\w+.-]", "_", "-".join([*place, name, width]))
                with _figure(stem, inches) as figure:
                    if draw(figure, block, board):
                        paths += [_saved(figure, folder / f"{stem}{ending}") for ending in endings]
    return paths


def draw_overview(board: Board, path: Path) -> Path | None:
    """Draw differences, cost and learning curves of the first block side by side, for a README; None without any.

    `path` ends in .svg, .pdf or .png.
    """
    block = next((block for block in board.blocks if any(map(block.scored, block.trained))), None)
    if block is None:
        return None
    with _figure(board.title, 10.5) as figure:
        figure.set_figheight(3.0)
        parts = figure.subfigures(1, 3, width_ratios=(1.25, 1, 1))
        for part, draw in zip(parts, (forest, cost, learning_curves), strict=True):
            draw(part, block, board)
        figure.suptitle(block.heading, fontsize=9)
        return _saved(figure, path)


def draw_trial(record: Record, path: Path) -> Path:
    """Draw the learning curves of a finished trial, and its positivity curve if its grid asked for an analysis.

    `path` ends in .pdf, .svg or .png. Raises ReportError for a trial that was not trained, and for another ending.
    """
    if not record.curve:
        raise ReportError(f"{record.id} was not trained and has no curve to draw")
    if path.suffix not in ENDINGS:
        raise ReportError(f"{path.name}: the name of a figure ends in {listed(ENDINGS)}")
    positivity = record.analysis.get("positivity")
    columns = 3 if positivity else 2
    with _figure(record.id, COLUMN_INCHES * columns / 1.5) as figure:
        axes = figure.subplots(1, columns)
        figure.set_figheight(2.2)
        _learning(axes[0], axes[1], record)
        if positivity:
            _positivity(axes[2], positivity)
        figure.suptitle(f"{record.arm}, {record.trial.dataset.name}, {record.trial.seed_and_fold}")
        return _saved(figure, path)


@contextmanager
def _figure(name: str, inches: float) -> Iterator[Any]:
    """Yield an empty figure in our style, `inches` wide. `name` makes the ids inside an SVG unique."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        **{"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": name},
        **{"font.size": 7.5, "axes.titlesize": 8, "axes.labelsize": 7.5, "legend.fontsize": 7},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.axisbelow": True},
        **{"xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5},
        **{"lines.linewidth": 1.0, "lines.markersize": 3.6, "grid.linewidth": 0.4, "grid.color": "#DDDDDD"},
        **{"legend.frameon": False, "legend.handlelength": 1.2, "legend.borderaxespad": 0.2},
    }
    with pyplot.rc_context(style):
        figure = pyplot.figure(figsize=(inches, 0.7 * min(inches, 3.6)), layout="constrained")
        try:
            yield figure
        finally:
            pyplot.close(figure)


def _height(figure: Any, inches: float) -> None:
    """Set the height that the rows of a figure need. The height of a subfigure does not change."""
    if figure is figure.get_figure(root=True):
        figure.set_figheight(inches)


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}
    figure.savefig(path, metadata=dates[path.suffix], dpi=200)
    return path


def _learning(left: Any, right: Any, record: Record) -> None:
    epochs = [epoch.epoch for epoch in record.curve]
    trained = [epoch for epoch in record.curve if epoch.loss is not None]
    left.plot([epoch.epoch for epoch in trained], [epoch.loss for epoch in trained], color=COLORS[0])
    left.set(ylabel="training loss")
    for name, color in zip(("R@1", "MAP@R"), COLORS, strict=False):
        if name in record.curve[0].validation:
            right.plot(epochs, [100 * epoch.validation[name] for epoch in record.curve], color=color, label=name)
    right.axvline(record.selected_epoch, color="0.6", linewidth=0.8)
    right.set(ylabel="validation, %")
    _over_epochs(left)
    _over_epochs(right)
    right.legend()


def _over_epochs(axes: Any) -> None:
    """Label the x axis with epochs, as whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _positivity(axes: Any, curve: dict[str, Any]) -> None:
    axes.plot(curve["lambda"], curve["measured"], color=COLORS[0], label="measured")
    if curve["closed_form"]:
        axes.plot(curve["lambda"], curve["closed_form"], color=COLORS[1], linestyle="--", label="closed form")
    axes.set(xlabel="λ", ylabel="share that acts as positive", ylim=(-0.02, 1.02))
    axes.legend()


def _cells(block: Block, metric: str) -> list[Any]:
    """Return the lines of the trained rows that have a score in a metric."""
    return [cell for row in block.trained if (cell := block.cell(row, metric))][:MOST_ROWS]


def forest(figure: Any, block: Block, board: Board) -> bool:
    """Draw the paired difference of every variant from its baseline with its interval, filled if significant.

    Like every function of FIGURES, return whether there was anything to draw.
    """
    metric = block.shown[0]
    cells = [cell for cell in _cells(block, metric) if cell.difference is not None][::-1]
    if not cells:
        return False
    from matplotlib.ticker import MaxNLocator

    _height(figure, 0.55 + ROW_INCHES * len(cells))
    axes = figure.subplots()
    axes.axvline(0, color="#8A8E97", linewidth=0.7)
    for place, cell in enumerate(cells):
        color, sign = marker(cell.level)
        reach = None if cell.difference_half is None else 100 * cell.difference_half
        face = color if cell.significant else "white"
        look = {"marker": sign, "color": color, "markerfacecolor": face, "markeredgewidth": 0.9, "elinewidth": 1.0}
        axes.errorbar(100 * cell.difference, place, xerr=reach, linestyle="none", **look)
    names = [wording.full(cell) + wording.below(cell) for cell in cells]
    longest = 16 * figure.get_size_inches()[0] if figure is figure.get_figure(root=True) else 26  # characters
    size = min(7.5, 7.5 * longest / max(map(len, names)) * 0.55)
    axes.set_yticks(range(len(cells)), names, fontsize=max(size, SMALLEST_POINTS))
    axes.set_ylim(-0.7, len(cells) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_xlabel(f"Δ {metric}, points")
    legend = []
    if any(cell.significant for cell in cells):
        legend.append("filled: significant after Holm's correction")
    if any(map(wording.below, cells)):
        legend.append(f"{wording.BELOW}: below its own starting point")
    if legend:
        figure.supxlabel("; ".join(legend), fontsize=6.5, color="0.35")
    return True


def heat_map(figure: Any, block: Block, board: Board) -> bool:
    """Draw losses by levels: the score of the baseline, then differences from it in points."""
    metric = block.shown[0]
    cells = _cells(block, metric)
    losses = list(dict.fromkeys(cell.baseline or cell.arm for cell in cells))
    levels = in_order(cell.level for cell in cells)
    if len(levels) < 2:
        return False
    first = {(cell.baseline or cell.arm, cell.level): cell for cell in reversed(cells)}
    digits = wording.decimals(block, metric)
    size = min(7.0, 14.0 * (figure.get_size_inches()[0] - 1.0) / len(levels))  # points: a tile holds five digits
    if size < SMALLEST_POINTS:
        return False
    many = len(levels) > FEW_LEVELS
    _height(figure, (1.3 if many else 0.5) + 0.24 * len(losses))
    axes = figure.subplots()
    for y, loss in enumerate(reversed(losses)):
        for x, level in enumerate(levels):
            cell = first.get((loss, level))
            difference = None if cell is None else cell.difference
            tone = COLORS[0] if difference is not None and difference >= 0 else COLORS[1]
            blank = difference is None
            axes.add_patch(_tile(x, y, "#9A9EA8", 0.12) if blank else _tile(x, y, tone, depth(cell)))
            dagger = wording.DAGGER if cell and cell.significant else ""
            text = "–" if cell is None else f"{100 * cell.mean:.{digits}f}"
            if difference is not None:
                text = f"{100 * difference:+.{digits}f}".replace("-", "−") + dagger
            axes.text(x, y, text, ha="center", va="center", fontsize=size)
    axes.set_xticks(range(len(levels)), levels, **({"rotation": 45, "ha": "left"} if many else {}))
    axes.set_yticks(range(len(losses)), losses[::-1])
    axes.set(xlim=(-0.5, len(levels) - 0.5), ylim=(-0.5, len(losses) - 0.5))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    sure = any(cell.difference_half is not None for cell in first.values())
    axes.set_xlabel(
        f"baseline: {metric} in %; others: Δ in points\npale: " + ("within the interval" if sure else "no interval")
    )
    return True


def depth(cell: Any) -> float:
    """Return the opacity of a difference, in [0.08, 0.68].

    It is the lowest within the interval or without one, and the highest from four half widths.
    """
    size, half = abs(cell.difference), cell.difference_half
    if half is None or size <= half:
        return 0.08
    return 0.2 + 0.48 * min((size / half - 1) / 3 if half else 1.0, 1.0)


def _tile(x: int, y: int, color: str, depth: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=color, alpha=depth, linewidth=0)


def cost(figure: Any, block: Block, board: Board) -> bool:
    """Draw the score against training time, with the Pareto front."""
    metric = block.shown[0]
    cells = [cell for cell in _cells(block, metric) if cell.train_s]
    if len(cells) < 2:
        return False
    axes = figure.subplots()
    least = min(cell.train_s for cell in cells)
    size, unit = (3600, "h") if least >= 3600 else (60, "min") if least >= 60 else (1, "s")
    for cell in cells:
        color, sign = marker(cell.level)
        reach = None if cell.half is None else 100 * cell.half
        axes.errorbar(
            cell.train_s / size, 100 * cell.mean, reach, color=color, marker=sign, elinewidth=0.6, alpha=0.9
        )
    front: list[Any] = []
    place = places({cell.row: cell.mean for cell in cells})
    for cell in sorted(cells, key=lambda cell: (cell.train_s, place[cell.row])):
        if not front or place[cell.row] < place[front[-1].row]:
            front.append(cell)
    points = [(cell.train_s / size, 100 * cell.mean) for cell in front]
    end = max(cell.train_s for cell in cells) / size
    axes.step(
        *zip(*points, (end, points[-1][1]), strict=True), where="post", color="0.6", linestyle="--", linewidth=0.8
    )
    axes.annotate(
        wording.full(front[-1]), points[-1], xytext=(4, 4), textcoords="offset points", fontsize=6.5, color="0.35"
    )
    axes.set(xlabel=f"training time, {unit}", ylabel=f"{metric}, %")
    axes.grid(axis="y")
    _legend(axes, cells)
    return True


def recall_curves(figure: Any, block: Block, board: Board) -> bool:
    """Draw R@K over K, one line per row."""
    at = {int(metric[2:]): metric for metric in block.metrics if re.fullmatch(r"R@\d+", metric)}
    ks = sorted(at)
    rows = [row for row in block.trained if all(block.cell(row, at[k]) for k in ks)][:MOST_ROWS]
    if len(ks) < 2 or not rows:
        return False
    axes = figure.subplots()
    for row in rows:
        color, sign = marker(row.level)
        scores = [100 * cell.mean for k in ks if (cell := block.cell(row, at[k]))]
        axes.plot(range(len(ks)), scores, color=color, marker=sign, markersize=2.8, alpha=0.85)
    axes.set_xticks(range(len(ks)), map(str, ks))
    axes.set(xlabel="K", ylabel="R@K, %")
    axes.grid(axis="y")
    _legend(axes, rows)
    return True


def learning_curves(figure: Any, block: Block, board: Board) -> bool:
    """Draw the validation score over epochs, as the mean over the seeds of a row."""
    axes, drawn = figure.subplots(), []
    for row in block.trained[:MOST_ROWS]:
        curves: Any = board.curves[board.curves["record"].isin(record_ids(row))]
        plain = curves.astype({"record": object})  # pandas cannot pivot a part of more than 127 categories
        each = plain.pivot(index="epoch", columns="record", values="validation")
        shared = each.dropna()
        if len(shared) < 2 or curves["validation"].isna().any():
            continue
        axes.plot(shared.index, 100 * shared.mean(axis=1), color=marker(row.level)[0], alpha=0.85)
        drawn.append(row)
    axes.set(ylabel=f"validation {FAIR.metric}, %")
    _over_epochs(axes)
    axes.grid(axis="y")
    _legend(axes, drawn, lines=True)
    return bool(drawn)


def validation_against_test(figure: Any, block: Block, board: Board) -> bool:
    """Draw the validation score of the selected checkpoint against its test score, one point per run."""
    rows = _cells(block, FAIR.metric)
    axes, points = figure.subplots(), 0
    for row in rows:
        color, sign = marker(row.level)
        own = board.scores["record"].isin(record_ids(row)) & (board.scores["metric"] == FAIR.metric)
        scores: Any = board.scores[own]
        pairs = 100 * scores[["validation", "value"]].dropna()
        axes.plot(pairs["validation"], pairs["value"], sign, color=color, markersize=3, alpha=0.8)
        points += len(pairs)
    axes.set(xlabel=f"validation {FAIR.metric}, %", ylabel=f"test {FAIR.metric}, %")
    axes.grid()
    _legend(axes, rows)
    return points > 2


def _legend(axes: Any, rows: Iterable[Any], lines: bool = False) -> None:
    """Add a legend of the levels that are drawn, in order."""
    from matplotlib.lines import Line2D

    here = in_order(row.level for row in rows)
    look: dict[str, Any] = {"linestyle": "-"} if lines else {"linestyle": "none"}
    handles = [
        Line2D([], [], color=marker(level)[0], marker="" if lines else marker(level)[1], label=level, **look)
        for level in here
    ]
    if len(handles) > FEW_LEVELS:
        figure = axes.get_figure(root=False)
        figure.legend(handles=handles, loc="outside lower center", ncols=max(2, int(figure.bbox.width / 125)))
    elif handles:
        axes.legend(handles=handles, loc="best", ncols=2 if len(handles) > 3 else 1)


FIGURES: dict[str, Callable[[Any, Block, Board], bool]] = {
    "forest": forest,
    "heat_map": heat_map,
    "cost": cost,
    "recall": recall_curves,
    "learning": learning_curves,
    "validation": validation_against_test,
}
