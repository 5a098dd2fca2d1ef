"""The tables of the LaTeX report, one function per kind of table. Each returns its table environments as text."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.config import METRIX, Level
from harness.leaderboard import captions, published
from harness.leaderboard.board import Block, Board, record_ids
from harness.leaderboard.columns import plain
from harness.reports import wording

LATIN = 0x180  # letters below it print in any current LaTeX without packages
SPECIAL = {
    **{character: f"\\{character}" for character in "&%#_{}"},
    "$": r"$\$$",  # in text it would come from a bitmap font where T1 fonts are missing
    "\\": r"\textbackslash{}",
    "~": r"\~{}",
    "^": r"\^{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "λ": r"$\lambda$",
    "α": r"$\alpha$",
    "η": r"$\eta$",
    "²": "$^2$",
    "–": "--",
    "\u00a0": "~",
    "…": r"\ldots{}",
}
MOST_ROWS = 42  # per table: as many as fit on a page
MOST_METRICS = 4  # column groups that fit on a page
LONGEST_NAME = 34  # characters of a name that fit on one line
GREY = r"\color{gray}"


@dataclass(frozen=True)
class Columns:
    """A group of columns.

    aligned  the preamble with siunitx
    plain    the preamble without siunitx
    number   the number of columns
    """

    aligned: str
    plain: str
    number: int


@dataclass(frozen=True)
class Sheet:
    """A table before it is rendered. `parts` are separated by rules; each part has groups of lines."""

    title: str
    label: str
    caption: Sequence[str]
    columns: Sequence[Columns]
    head: Sequence[str]
    parts: Sequence[Sequence[Sequence[str]]]
    notes: Sequence[str] = ()
    names: Columns = Columns("l", "l", 1)


def joint(board: Board) -> list[str]:
    """Return one table for each network with several datasets, with a column group for each dataset."""
    tables = []
    for backbone in dict.fromkeys(block.backbone for block in board.blocks):
        blocks = [block for block in board.blocks if block.backbone == backbone and block.trained]
        places = [block.dataset for block in blocks]
        blocks = [block for block in blocks if places.count(block.dataset) == 1]
        n_metrics = 2 if len(blocks) == 2 else 1
        for start in range(0, len(blocks), MOST_METRICS):
            chunk = blocks[start : start + MOST_METRICS]
            if len(chunk) > 1:
                tables += _joint(board, backbone, chunk, n_metrics)
    return tables


def _joint(board: Board, backbone: str, blocks: Sequence[Block], n_metrics: int) -> list[str]:
    groups: dict[tuple, dict[str, list[Any]]] = {}
    for number, block in enumerate(blocks):
        for group in (*block.groups, block.floors):
            for row in group:
                floor = row.level == "floor"
                rows = groups.setdefault((floor, "" if floor else row.baseline or row.arm), {})
                rows.setdefault(row.arm + row.name, [None] * len(blocks))[number] = row
    shown = [block.shown[:n_metrics] for block in blocks]
    digits = [{m: wording.decimals(block, m) for m in metrics} for block, metrics in zip(blocks, shown, strict=True)]
    columns = [_metric(block, m) for block, metrics in zip(blocks, shown, strict=True) for m in metrics]

    def line(rows: Sequence[Any]) -> str:
        first = next(row for row in rows if row is not None)
        cells = [
            part
            for block, row, metrics, places in zip(blocks, rows, shown, digits, strict=True)
            for m in metrics
            for part in _cells(
                block, row, m, places[m], interval=False, first=True, sign=wording.below(row) if row else ""
            )
        ]
        return _line(name(first), cells)

    titles, rules, at = [], [], 2
    for block, metrics in zip(blocks, shown, strict=True):
        width = 3 * len(metrics)
        titles.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(block.data)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    heads = [" & ".join(["", *titles]) + r" \\", " ".join(rules), _heads([m for metrics in shown for m in metrics])]
    body = {key: [line(rows) for rows in arms.values()] for key, arms in sorted(groups.items())}
    parts = [[lines for (floor, _), lines in body.items() if floor is wanted] for wanted in (False, True)]
    caption = [
        f"{', '.join(block.dataset for block in blocks)} · {backbone}.",
        *captions.in_brief(
            [replace(b.of_rows(b.rows), shown=metrics) for b, metrics in zip(blocks, shown, strict=True)],
            intervals=False,
        ),
    ]
    printed = zip(blocks, shown, strict=True)
    notes = [
        f"{b.dataset}: {text}" for b, metrics in printed for text in captions.power([b.summaries[m] for m in metrics])
    ]
    label = _label(board, *(block.dataset for block in blocks), backbone)
    return _pages(Sheet(backbone, label, caption, columns, heads, parts, notes))


def single(board: Board) -> list[str]:
    """Return a table for each block: every printed metric with its interval and difference, and the costs."""
    tables = []
    for number, block in enumerate(board.blocks, 1):
        shown = block.shown[:MOST_METRICS]
        digits = {m: wording.decimals(block, m) for m in shown}

        def line(row: Any, block=block, shown=shown, digits=digits) -> str:
            cells = [part for m in shown for part in _cells(block, row, m, digits[m], first=m == shown[0])]
            return _line(name(row, wording.below(row)), [*cells, *map(escape, _costs(row))])

        def published_line(row: Any, block=block, shown=shown) -> str:
            key = published.key(row.source)
            source = rf" \cite{{{key}}}" if key else f" ({escape(published.short(row.source))})"
            cells = [part for m in shown for part in _published_cells(block.cell(row, m))]
            return _line(rf"{GREY} {escape(wording.arm_title(row.arm))}{source}", [*cells, "", "", "", ""])

        heads = [_heads(shown)[: -len(r" \\")] + r" & time & passes & GB & $n$ \\"]
        columns = [*(_metric(block, m) for m in shown), Columns("rrrr", "rrrr", 4)]
        parts = [
            [[line(row) for row in group] for group in block.groups],
            [[line(row) for row in block.floors]],
            [[published_line(row) for row in block.published]],
        ]
        same_place = [b for b in board.blocks if (b.dataset, b.backbone) == (block.dataset, block.backbone)]
        label = _label(board, block.dataset, block.backbone, *([str(number)] if len(same_place) > 1 else []))
        title = block.heading
        costs = [
            *(["time and passes: relative to its own baseline"] if captions.ratios(block.rows) else []),
            *(["GB: peak memory"] if any(_costs(row)[2] for row in block.rows) else []),
        ]
        caption = [f"{title}.", *captions.in_brief([replace(block, shown=shown)])]
        caption += [f"{text[0].upper()}{text[1:]}." for text in ["; ".join(costs)] if text]
        notes = [" ".join(block.caption), *wording.footnotes(block)]
        tables += _pages(Sheet(title, label, caption, columns, heads, parts, notes, _names(block.rows)))
    return tables


SETTING_TITLES = {"level": "level", "metrix.weight": "$w$", "metrix.alpha": r"$\alpha$", "metrix.hardest": "$k$"}


def ablations(board: Board) -> list[str]:
    """Return a table for each loss and way to mix whose variants have non-default settings that differ."""
    tables = []
    for block in board.blocks:
        for group in block.groups:
            ways = defaultdict(list)
            for row in group:
                if row.baseline and row.level != "longer" and row.records:
                    ways["Metrix" if row.level in METRIX else wording.level_title(row.level)].append(row)
            for way, rows in ways.items():
                if any("[" in row.name for row in rows):
                    tables += _ablation(board, block, group[0], way, rows)
    return tables


def _ablation(board: Board, block: Block, baseline: Any, way: str, rows: Sequence[Any]) -> list[str]:
    settings = _settings(board, [record_ids(row)[0] for row in rows])
    varied = [key for key in settings[0] if len({str(each[key]) for each in settings}) > 1]
    if not varied:
        return []
    shown = block.shown[:MOST_METRICS]
    digits = {m: wording.decimals(block, m) for m in shown}

    def line(row: Any, settings: Sequence[object]) -> str:
        sign = wording.below(row)
        cells = [part for m in shown for part in _cells(block, row, m, digits[m], first=m == shown[0], sign=sign)]
        words = ["" if value is None else escape(str(value)) for value in settings]
        return _line(words[0], [*words[1:], *cells])

    order = sorted(range(len(rows)), key=lambda i: [str(settings[i][key]) for key in varied])
    none = {"metrix.hardest": "all", "metrix.max_mixed": "all", "metrix.stage": "last"}
    words = [[none.get(k) if each[k] is None else each[k] for k in varied] for each in settings]
    lines = [line(rows[i], words[i]) for i in order]
    heads = [SETTING_TITLES.get(key, escape(key.partition(".")[2].replace("_", " "))) for key in varied]
    head = [" & ".join(heads) + _heads(shown)]
    columns = [Columns("l" * (len(varied) - 1), "l" * (len(varied) - 1), 0), *(_metric(block, m) for m in shown)]
    title = f"{wording.title(baseline)} on {block.heading}"
    first = [line(baseline, [f"no {way}", *[None] * (len(varied) - 1)])]
    printed = replace(block.of_rows([baseline, *rows]), shown=shown)
    caption = [f"Ablation of {way}: {title}.", *captions.in_brief([printed])]
    rival = "" if way == "Metrix" else way
    label = _label(board, "ablation", block.dataset, block.backbone, baseline.arm, rival)
    return _pages(Sheet(title, label, caption, columns, head, [[first], [lines]]))


def _settings(board: Board, records: Sequence[str]) -> list[dict[str, Any]]:
    """Return the level of each of these records and the settings of its level, by column of the scores."""
    lines: Any = board.scores[board.scores["record"].isin(records)]
    scores = lines.drop_duplicates("record")
    own = [f"metrix.{name}" for name in Level.model_fields if name != "at"]
    names = ["level", *own, *(name for name in scores if name.startswith("rival."))]
    columns = [plain(scores[name]) for name in names]
    settings: dict[str, dict[str, Any]] = {
        id: dict(zip(names, values, strict=True)) for id, *values in zip(scores["record"], *columns, strict=True)
    }
    return [settings[id] for id in records]


def reproduced(board: Board) -> list[str]:
    """Return tables of published rows next to our results for the same arm. No difference is computed."""
    tables = []
    for block in board.blocks:
        pairs = list(wording.counterparts(block))
        metrics = [m for m in block.metrics if any(block.cell(other, m) for other, _ in pairs)][:MOST_METRICS]
        if not pairs or not metrics:
            continue
        inflations = [wording.inflation(block.cell(own_row, metrics[0])) for _, own_row in pairs]
        known = any(text != wording.MISSING for text in inflations)
        lines = [
            _line(
                f"{escape(wording.arm_title(other.arm))} {GREY}\\cite{{{published.key(other.source)}}}",
                [
                    part
                    for m in metrics
                    for part in _reproduced_cells(block.cell(other, m), block.cell(own_row, m), block, m)
                ]
                + ([escape(text)] if known else []),
            )
            for (other, own_row), text in zip(pairs, inflations, strict=True)
        ]
        group = Columns("rr@{\\,}l", "rr@{\\,}l", 3)
        titles = " & ".join(rf"\multicolumn{{3}}{{c}}{{{escape(m)}}}" for m in metrics)
        rules = " ".join(rf"\cmidrule(lr){{{2 + 3 * i}-{4 + 3 * i}}}" for i in range(len(metrics)))
        under = " & ".join(rf"{GREY} theirs & \multicolumn{{2}}{{c}}{{here}}" for _ in metrics)
        last = (" &", " & inflation") if known else ("", "")
        head = [rf" & {titles}{last[0]} \\", rules, rf" & {under}{last[1]} \\"]
        printed = replace(block.of_rows(own_row for _, own_row in pairs), shown=tuple(metrics))
        caption = [
            f"Published and reproduced: {block.heading}.",
            "Theirs: as published, under their own protocols.",
            *([wording.INFLATION.format(metrics[0])] if known else []),
            *captions.in_brief([printed], differences=False, marks=False),
        ]
        label = _label(board, "published", block.dataset, block.backbone)
        columns = [*(group for _ in metrics), *([Columns("r", "r", 1)] if known else [])]
        tables += _pages(Sheet("published and reproduced", label, caption, columns, head, [[lines]]))
    return tables


def _reproduced_cells(published_cell: Any | None, own_cell: Any | None, block: Block, metric: str) -> list[str]:
    unmarked = own_cell and own_cell._replace(best=False, second=False)
    mean, half, _ = _numbers(unmarked, wording.decimals(block, metric)) if unmarked else (wording.MISSING, "", "")
    return [_published_cells(published_cell)[0], mean, half]


def _metric(block: Block, metric: str) -> Columns:
    """Return the columns of a metric: mean, half width and difference, sized for its largest score."""
    scores = [cell.mean for row in block.rows if (cell := block.cell(row, metric))]
    front = 3 if max(scores, default=0) >= 0.9995 else 2
    look = f"table-format={front}.{wording.decimals(block, metric)},detect-weight=true,mode=text"
    right = "table-number-alignment=right,table-text-alignment=right"
    return Columns(rf"S[{look},{right}]@{{\,}}l@{{\enspace}}r@{{\quad}}", r"r@{\,}l@{\enspace}r@{\quad}", 3)


def _heads(metrics: Iterable[str]) -> str:
    """Return the heading of metrics: the name over mean and half width, a small Δ over the difference."""
    parts = [rf"\multicolumn{{2}}{{c}}{{{escape(m)}}} & {{\scriptsize $\Delta$}}" for m in metrics]
    return " & ".join(["", *parts]) + r" \\"


def _cells(
    block: Block,
    row: Any | None,
    metric: str,
    digits: int,
    interval: bool = True,
    first: bool = False,
    sign: str = "",
) -> list[str]:
    """Return mean, half width and difference as LaTeX. A state replaces a missing first score.

    `sign` is printed after the mean, in tables whose names cannot have it.
    """
    cell = block.cell(row, metric) if row else None
    if cell is None:
        scored = row is not None and block.scored(row)
        state = wording.MISSING if row is None or scored else wording.state(row)
        return [f"{{{escape(state)}}}" if first or scored else "", "", ""]
    mean, half, difference = _numbers(cell, digits)
    if difference and interval and cell.difference_half is not None:
        difference += rf"\,$\pm$\,{100 * cell.difference_half:.{digits}f}"
    if difference:
        dagger = r"\rlap{$^\dagger$}" if cell.significant else ""
        difference = rf"{{\scriptsize {difference}{dagger}}}"
    return [mean, half + escape(sign), difference]


def _numbers(cell: Any, digits: int) -> tuple[str, str, str]:
    """Return the marked mean, the small half width and the bare difference."""
    mean = f"{100 * cell.mean:.{digits}f}"
    bold = r"\bfseries " if cell.best else ""
    mean = rf"{{{bold}\underline{{{mean}}}}}" if cell.second else bold + mean
    half = "" if cell.half is None else rf"{{\scriptsize $\pm$\,{100 * cell.half:.{digits}f}}}"
    difference = "" if cell.difference is None else f"{100 * cell.difference:+z.{digits}f}"
    return mean, half, re.sub(r"^([+-])", r"$\1$", difference)


def _published_cells(cell: Any | None) -> list[str]:
    return ["" if cell is None else f"{GREY} {100 * cell.mean:.1f}", "", ""]


def _costs(row: Any) -> list[str]:
    """Return time, forward passes, peak memory and number of seeds."""
    memory = "" if row.peak_gb is None or row.level == "floor" else f"{row.peak_gb:.1f}"
    return [wording.time(row), wording.passes(row), memory, wording.seeds(row)]


def name(row: Any, sign: str = "") -> str:
    """Return the name of a row in paper style, indented for variants, followed by `sign`."""
    return (r"\quad " if row.baseline else "") + _breakable(escape(wording.title(row))) + escape(sign)


def _breakable(text: str) -> str:
    """Return a name in which long names may break after punctuation."""
    return re.sub(r"(?<=[,\[+])", r"\\allowbreak{}", text) if len(text) > LONGEST_NAME else text


def _names(rows: Iterable[Any]) -> Columns:
    longest = max((len(wording.title(row)) for row in rows), default=0)
    column = "l" if longest <= LONGEST_NAME else r"p{5.4cm}"
    return Columns(column, column, 1)


def _line(first: str, cells: Sequence[str]) -> str:
    return " & ".join([first, *cells]) + r" \\"


def _pages(sheet: Sheet) -> list[str]:
    """Return the table, split into several if its rows do not fit on a page. Groups are kept together if they fit."""
    pages: list[list[list[list[str]]]] = [[[] for _ in sheet.parts]]
    for number, part in enumerate(sheet.parts):
        for group in part:
            for start in range(0, len(group), MOST_ROWS):
                chunk = group[start : start + MOST_ROWS]
                if sum(len(g) for p in pages[-1] for g in p) + len(chunk) > MOST_ROWS:
                    pages.append([[] for _ in sheet.parts])
                pages[-1][number].append(list(chunk))
    return [_environment(sheet, page, number, len(pages)) for number, page in enumerate(pages, 1)]


def _environment(sheet: Sheet, parts: Sequence[Sequence[Sequence[str]]], number: int, pages: int) -> str:
    """Return one table environment. Notes are printed below the last part."""
    aligned, plain = (
        "".join(getattr(columns, kind) for columns in (sheet.names, *sheet.columns)) for kind in ("aligned", "plain")
    )
    caption = [f"{' '.join(sheet.caption)}{f' Part {number} of {pages}.' if pages > 1 else ''}"]
    rows = [
        "\n    \\addlinespace\n".join("\n".join(f"    {line}" for line in group) for group in part)
        for part in parts
        if any(part)
    ]
    notes = sheet.notes if number == pages else ()
    notes_below = [
        r"  \par\smallskip",
        r"  \begin{minipage}{\linewidth}\scriptsize\raggedright",
        *(f"    {sentence(note)}\\par" for note in notes),
        r"  \end{minipage}",
    ]
    return "\n".join(
        [
            r"\begin{table}[tp]",
            r"  \centering\footnotesize\setlength{\tabcolsep}{4pt}",
            rf"  \caption[{{{escape(sheet.title)}}}]{{{' '.join(map(sentence, caption))}}}",
            rf"  \label{{{sheet.label}{f'-{number}' if pages > 1 else ''}}}",
            r"  \smallskip",
            rf"  \ifdefined\sisetup\def\numbers{{\begin{{tabular}}{{@{{}}{aligned}@{{}}}}}}%",
            rf"  \else\def\numbers{{\begin{{tabular}}{{@{{}}{plain}@{{}}}}}}\fi",
            r"  \numbers",
            r"    \toprule",
            *(f"    {line}" for line in sheet.head),
            r"    \midrule",
            "\n    \\midrule\n".join(rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(notes_below if notes else []),
            r"\end{table}",
        ]
    )


def _label(board: Board, *parts: str) -> str:
    """Return a label such as `tab:quick-glyphs-test-resnet`."""
    return "tab:" + "-".join(re.findall(r"[a-z0-9]+", " ".join([board.title, *parts]).lower()))


def escape(text: str) -> str:
    """Escape text so that LaTeX prints it literally. Characters that its fonts lack become `U+4E2D`."""
    return "".join(SPECIAL.get(c, c if ord(c) < LATIN else f"U+{ord(c):04X}") for c in text)


def sentence(text: str) -> str:
    """Return a sentence of a caption: escaped, with non-breaking spaces, n in italics, commands in typewriter."""
    text = escape(text.replace(" %", "\u00a0%").replace("± ", "±\u00a0")).replace(r"~\%", r"\,\%")
    text = re.sub(r"\bn = (\d+(?: to \d+)?)", r"$n = \1$", text)
    return text.replace(captions.TRACE, rf"\texttt{{{captions.TRACE}}}")
