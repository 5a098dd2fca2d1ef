"""The captions of a leaderboard, which explain its numbers.

Every sentence is built from the lines and records that it describes, so it cannot claim what was not computed.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness import registry
from harness.config import FEATURES, FLOORS, METRIX, PIXELS, PIXELS_PX, UNTRAINED
from harness.fairness.protocols import PROTOCOLS
from harness.leaderboard.board import Block, Board
from harness.leaderboard.comparisons import ALPHA, Summary
from harness.leaderboard.notes import listed
from harness.leaderboard.published.spread import METRIC, Cell, decimal
from harness.leaderboard.rows import step_sizes
from harness.leaderboard.variance import Variance

PARTS = ("train", "validation", "test")
COMPILED = {
    "network": ", compiled (its seconds include compiling)",
    "cuda_graphs": ", compiled with CUDA graphs (its seconds include compiling)",
}
TRACE = "metrix-bench trace RUN ARM"  # the command that leads from a number to its records


def of_board(board: Board, *, styled: bool = True, published: str = "", every: bool = False) -> tuple[str, ...]:
    """Return sentences that explain the numbers and marks that a format shows.

    styled     whether the format prints bold and underlined text
    published  how the format marks published rows; "" if it shows none
    every      whether the format shows all metrics, not only those that tables print
    """
    blocks = [replace(block, shown=block.metrics) if every else block for block in board.blocks]
    rows = [row for block in blocks for row in block.rows]
    measured = [block for block in blocks if any(row.records for row in block.rows)]
    if not measured:
        return ()
    sentences = [f"Protocol {name}." for name in _protocols(measured)]
    sentences += _scores(blocks)
    if any(block.factors.get("folds") for block in measured):
        sentences.append(
            "Folds: one model per fold, which validates on its part of the training classes and trains on the rest; "
            "each model reads the test once; costs are summed over folds."
        )
    if ratios(rows):
        sentences.append(
            "Training time (seconds inside training steps) and forward passes per step: relative to its own baseline."
        )
    sentences.append("Ties count against the model; a query is excluded from its own neighbours by its index.")
    sentences += _marks(blocks, styled)
    sentences += _ways(rows)
    if any(row.arm == FEATURES for row in rows):
        sentences.append(_zero_shot(blocks))
    if any(row.arm == UNTRAINED for row in rows):
        sentences.append("untrained: the same network with its initial weights.")
    if any(row.arm == PIXELS for row in rows):
        large = any((block.factors.get("images.side_px") or 0) > PIXELS_PX for block in blocks)
        shown = f"images, averaged to {PIXELS_PX} px" if large else "raw images"
        sentences.append(f"pixels: cosine similarity of the {shown}; nothing is random, so n = 1.")
    if published and any(block.published for block in blocks):
        sentences.append(
            f"{published}: as published elsewhere, under other protocols; they enter none of our numbers."
        )
        sentences += _apart(blocks)
    if board.variance is not None:
        sentences.append(_variance(board.variance))
    sentences.append(f"{TRACE} lists the records behind every number.")
    return tuple(sentences)


def ratios(rows: Sequence[Any]) -> bool:
    """Return whether a row prints its time or passes relative to its baseline, or a baseline its own passes as 1."""
    printed = (
        (row.relative_time, row.relative_passes, None if row.baseline else row.forward_passes_per_step)
        for row in rows
    )
    return any(ratio is not None for ratios in printed for ratio in ratios)


def _ways(rows: Sequence[Any]) -> Iterator[str]:
    """Yield the ways to mix besides Metrix, the pairings that nobody published, and remarks on losses and levels."""
    known = registry.levels()
    pairs = {(row.loss, part): None for row in rows if row.records for part in row.level.split("+") if part in known}
    rivals = {part: registry.level(part) for _, part in sorted(pairs, key=lambda pair: known.index(pair[1]))}
    for name in METRIX:
        rivals.pop(name, None)
    if rivals:
        yield f"Besides Metrix: {'; '.join(f'{about.title}, {about.paper}' for about in rivals.values())}."
    new = [f"{loss}+{part}" for loss, part in pairs if part in rivals and loss not in rivals[part].published_with]
    if new:
        yield f"Not published in this pairing, so adapted here: {listed(new)}."
    losses = [
        registry.loss(name) for name in dict.fromkeys(row.loss for row in rows if row.records) if name not in FLOORS
    ]
    for about in (*losses, *rivals.values()):
        if about.remark:
            yield f"{about.title}: {about.remark}."


def _zero_shot(blocks: Sequence[Block]) -> str:
    """Return what the floor `features` is, and how many trained rows score below it in each metric."""
    sentence = (
        f"{FEATURES}: the pooled features of the pretrained network at unit length, without a head (zero-shot); "
        "nothing is random, so n = 1"
    )
    counts: dict[str, list[bool]] = defaultdict(list)
    for block in blocks:
        floor = next((row for row in block.floors if row.arm == FEATURES), None)
        for metric in block.shown if floor is not None else ():
            start = block.cell(floor, metric)
            cells = [block.cell(row, metric) for row in block.rows if row.level != "floor"]
            if start is not None:
                counts[metric] += [cell.mean < start.mean for cell in cells if cell is not None]
    below = [f"{sum(lower)} of {len(lower)} trained rows in {metric}" for metric, lower in counts.items() if lower]
    return f"{sentence}. Below it: {', '.join(below)}." if below else f"{sentence}."


def _variance(variance: Variance) -> str:
    """Return the sources of variance, largest share first. Shares below 1 % are added up."""
    over = " × ".join(f"{n} {name}s" if not name.endswith("s") else f"{n} {name}es" for name, n in variance.sizes)
    large = [(" × ".join(factors), share) for factors, share in variance.shares if factors and share >= 0.01]
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in large)
    rest = 1 - sum(share for _, share in large)
    left = f"; left out to complete the grid: {listed(variance.left_out)}" if variance.left_out else ""
    rest = f"everything else {100 * max(rest, 0.0):.0f} %"
    return f"Variance of {variance.metric} over {over}: {shares}, {rest} (η²{left})."


def in_brief(
    blocks: Sequence[Block], *, differences: bool = True, intervals: bool = True, marks: bool = True
) -> tuple[str, ...]:
    """Return the caption of a table in a paper: score, difference, marks, protocol.

    differences  whether the table shows differences from the baseline
    intervals    whether the differences have intervals
    marks        whether the table shows bold, underlined, † and ‡
    """
    cells = _cells(blocks)
    if not cells:
        return ()
    measured = [block for block in blocks if any(row.records for row in block.rows)]
    protocols = {f"{name}, version {version}" for name, version in map(_protocol, measured)}
    score, *difference = _scores(blocks, intervals)
    signs = [
        *(["bold: best, and not separable from it"] if any(cell.best for cell in cells) else []),
        *(["underlined: second highest mean"] if any(cell.second for cell in cells) else []),
        *(["†: differs significantly from its baseline"] if any(cell.significant for cell in cells) else []),
    ]
    tests = f" (paired t-tests, Holm within each column, {ALPHA})."
    return (
        score,
        *(difference if differences else ()),
        *([f"{'; '.join(signs).capitalize()}{tests}"] if marks and signs else []),
        *(_marks(blocks) if marks and not signs else _below(blocks) if marks else ()),
        *(["With a citation: as published, under other protocols."] if any(b.published for b in blocks) else []),
        *_apart(blocks),
        f"Protocol {' and '.join(sorted(protocols))}; {TRACE} lists the records behind every number.",
    )


def _apart(blocks: Sequence[Block]) -> Iterator[str]:
    """Yield for each block how far published numbers for the same arm are apart, the largest distance first."""
    for block in blocks:
        numbers: dict[str, list[tuple[str, float, str]]] = defaultdict(list)
        for row in block.published:
            if cell := block.cell(row, METRIC):
                numbers[row.arm].append((row.source, cell.mean, ""))
        dim = block.factors.get("model.dim")
        backbone = block.backbone.partition(".")[0]
        cells = [Cell(block.dataset, backbone, dim, arm, METRIC, tuple(found)) for arm, found in numbers.items()]
        if differing := sorted((cell for cell in cells if cell.disagrees), key=lambda cell: -cell.spread):
            arms = [f"{cell.arm} by {decimal(cell.spread)} ({cell.publications} publications)" for cell in differing]
            yield (
                f"Published {METRIC} on {block.dataset} with {backbone}, {dim} dimensions, differs between "
                f"publications, in points: {listed(arms)}."
            )


def _cells(blocks: Sequence[Block]) -> list[Any]:
    """Return the lines that are printed."""
    cells = (block.cell(row, metric) for block in blocks for row in block.rows for metric in block.shown)
    return [cell for cell in cells if cell is not None]


def _marks(blocks: Sequence[Block], styled: bool = True) -> Iterator[str]:
    """Yield the meaning of each mark that is used, or the reason why no mark is used."""
    cells = _cells(blocks)
    tested = any(cell.difference_p_holm is not None for cell in cells)
    if styled and any(cell.best for cell in cells):
        yield (
            "Bold: the highest mean of a column and every row not separable from it (paired t-tests of that row, "
            f"which was chosen from the same data, against each other trained row, Holm, {ALPHA})."
        )
    if styled and any(cell.second for cell in cells):
        yield "Underlined: the second highest mean; ties are marked alike."
    how = f"(paired t-tests of every variant of a column, Holm, {ALPHA}); no correction across columns."
    if any(cell.significant for cell in cells):
        yield f"†: differs significantly from its baseline {how}"
    elif tested:
        yield f"No variant differs significantly from its baseline {how}"
    yield from _below(blocks)
    why = sorted({block.summaries[metric].unmarked for block in blocks for metric in block.shown} - {""})
    if why and not tested and not any(cell.best for cell in cells):
        yield f"No row is marked as best and no difference as significant: {'; '.join(why)}."


def _below(blocks: Sequence[Block]) -> Iterator[str]:
    """Yield the meaning of ‡ if any row has it."""
    if any(row.below_start for block in blocks for row in block.rows):
        yield "‡: below its own starting point (FAIR-26)."


def _protocol(block: Block) -> tuple[str, Any]:
    """Return the name and version of the protocol of a block."""
    factors = block.factors
    return str(factors.get("protocol.name") or factors.get("protocol")), factors.get("protocol.version") or 0


def _protocols(blocks: Sequence[Block]) -> Iterator[str]:
    """Yield each protocol with its version, and its rules if this version is the registered one."""
    for name, version in sorted(set(map(_protocol, blocks))):
        known = PROTOCOLS.get(name)
        rule = f": {known.sentence}" if known and known.version == version else ""
        yield f"{name}, version {version}{rule}"


def _scores(blocks: Sequence[Block], intervals: bool = True) -> Iterator[str]:
    """Yield the meaning of the numbers before and after ±, from the methods that were used (FAIR-13)."""
    cells = _cells(blocks)
    real = [(cell.interval, cell.n) for cell in cells if cell.half is not None]
    how = _plus_minus(real, "training seeds") or " over n training seeds (too few for an interval)"
    yield f"Test scores in percent: mean{how}{_folds(blocks)}."
    if any(cell.difference is not None for cell in cells):
        real = [(cell.difference_interval, cell.difference_n) for cell in cells if cell.difference_half is not None]
        how = _plus_minus(real, "pairs; assumes normally distributed differences") or " (too few for an interval)"
        yield (f"Δ: mean difference from the same loss alone, in points, paired by seed{how if intervals else ''}.")


def _folds(blocks: Sequence[Block]) -> str:
    """Return `, each the mean over 4 class-disjoint folds`; "" without cross-validation."""
    counts = {block.factors.get("folds") for block in blocks if any(row.records for row in block.rows)}
    if not any(counts):
        return ""
    numbers = " or ".join(map(str, sorted(count for count in counts if count is not None)))
    return f", each the mean over {numbers} class-disjoint folds" + (
        " where a table says so" if None in counts else ""
    )


def _plus_minus(intervals: Sequence[tuple[str, int]], over: str) -> str:
    """Return ` ± half width of the 95 % t-interval over n = 3 training seeds`; "" if no interval exists."""
    if not intervals:
        return ""
    methods = sorted({method.partition(" over ")[0] for method, _ in intervals})
    least, most = min(n for _, n in intervals), max(n for _, n in intervals)
    n = f"{least}" if least == most else f"{least} to {most}"
    return f" ± half width of the {' or '.join(methods)} over n = {n} {over}"


def of_block(
    block: Block, data: Any | None, weights: Sequence[str], normalisation: Mapping[str, Any] | None, tuned: bool
) -> tuple[str, ...]:
    """Return sentences on the data, network and training that the rows of a block share, and on its power.

    data           a line with the sizes of the splits; None if there is none
    weights        the published weights or weight files that training started from
    normalisation  how images were normalised; None if no record has it
    tuned          whether a search chose the settings of the arms
    """
    sentences = [] if data is None else [_data(block, data)]
    if "model.dim" in block.factors:
        sentences.append(_network(block, weights, normalisation))
        if block.trained:
            sentences.append(_training(block, tuned))
    printed = [block.summaries[metric] for metric in block.shown]
    return (*sentences, *power(printed), *_queries(printed))


def power(summaries: Sequence[Summary]) -> Iterator[str]:
    """Yield the smallest difference that these seeds can detect, for each metric whose spread is known."""
    measurable = [(s, least, spread) for s in summaries if (least := s.least) and (spread := s.spread)]
    if measurable:
        seeds, family = min(s.seeds for s, *_ in measurable), max(s.comparisons for s, *_ in measurable)
        least = " and ".join(f"{100 * value:.1f} {s.metric} points" for s, value, _ in measurable)
        spread = " and ".join(f"{100 * value:.2f}" for *_, value in measurable)
        yield (
            f"Power: with {seeds} paired seeds, a true difference of at least {least} is detected with 80 % "
            f"probability after Holm for {family} comparison{'s' * (family > 1)} (standard deviation of the "
            f"differences: {spread})."
        )


def _queries(summaries: Sequence[Summary]) -> Iterator[str]:
    """Yield how much scores would vary with other test classes, if the outcomes of queries are known."""
    alone = [(s.metric, s.classes) for s in summaries if s.classes]
    both = [(s.metric, s.both) for s in summaries if s.both]
    if alone:
        moves = " and ".join(f"± {100 * value:.1f} {metric} points" for metric, value in alone)
        also = " and ".join(f"± {100 * value:.1f} {metric} points" for metric, value in both)
        yield (
            f"Beyond training seeds: with other test classes a score would vary by {moves}"
            + (f", with other seeds and test classes by {also}" if also else "")
            + " (medians over rows of 95 % bootstrap intervals that resample whole classes)."
        )


def _data(block: Block, data: Any) -> str:
    parts = [
        f"{name} {images:,} images of {getattr(data, f'{name}_classes') or 0:,} classes"
        for name in PARTS
        if (images := getattr(data, f"{name}_images")) is not None
    ]
    queries = f"{data.test_queries:,} test queries"
    if data.test_excluded:
        queries += f" ({data.test_excluded:,} more excluded: no other image of their class)"
    prints = f"index {block.factors['data.index_fingerprint'][:12]}"
    if block.factors.get("data.pixel_fingerprint"):
        prints += f", pixels {block.factors['data.pixel_fingerprint'][:12]}"
    return f"Data: {'; '.join(parts)}; {queries}; fingerprint {prints}."


def _network(block: Block, weights: Sequence[str], normalisation: Mapping[str, Any] | None) -> str:
    factors, pretrained = block.factors, block.factors["backbone.pretrained"]
    start = "random initial weights"
    if pretrained:
        start = " ".join(["pretrained weights" if pretrained is True else "weights of the file", *weights])
    name = block.backbone if pretrained is True else block.backbone.partition(".")[0]  # no tag that is not loaded
    frozen = factors.get("model.backbone") == "frozen"
    trains = "frozen: only the head trains, on the features of "
    trains += "the test crop" if (factors.get("images.views") or 1) == 1 else f"{factors['images.views']} views"
    how = f", {trains if frozen else 'fine-tuned as a whole'}" if pretrained else ""
    head = f" through {factors['model.hidden']} hidden units" if factors.get("model.hidden") else ""
    norm = "" if frozen else f", BatchNorm {factors['model.norm']}"
    return (
        f"Network: {name}, {start}{_normalised(factors, normalisation)}{how}, {factors['model.pooling']} pooling to "
        f"{factors['model.dim']} dimensions{head}{norm}, images of {factors['images.side_px']} px."
    )


def _normalised(factors: Mapping[str, Any], used: Mapping[str, Any] | None) -> str:
    """Return how images are normalised, for weights that are not timm's or settings from the grid; "" otherwise."""
    own = any(factors.get(f"backbone.{name}") for name in ("mean", "std", "interpolation"))
    if used is None or not (own or isinstance(factors["backbone.pretrained"], str)):
        return ""
    mean, std = (" ".join(f"{value:g}" for value in used[name]) for name in ("mean", "std"))
    rest = f" (what the grid does not set follows timm's {used['config']})" if used["config"] else ""
    return f", images normalised by mean {mean} and std {std}, {used['interpolation']}{rest}"


def _training(block: Block, tuned: bool) -> str:
    """Return the shared settings of training. Step sizes are given per loss if losses differ (FAIR-08)."""
    training = {name.partition(".")[2]: v for name, v in block.factors.items() if name.startswith("training.")}
    drawn = f"{training['examples_per_class']} per class" if training["sampler"] == "balanced" else "shuffled"
    sizes: dict[str, list[str]] = defaultdict(list)
    for row in block.rows:
        if row.level == "baseline" and row.lr is not None:
            sizes[step_sizes(row._asdict())].append(row.arm)
    steps = "; ".join(step if len(sizes) == 1 else f"{step} ({listed(arms)})" for step, arms in sorted(sizes.items()))
    if tuned:
        steps = "step sizes and constants chosen for each arm by a search (search/study.json)"
    epochs = f"{training['epochs']} epoch{'s' * (training['epochs'] != 1)}"
    how = COMPILED.get(training.get("compile", "none"), "")
    return (
        f"Training: {epochs}, batches of {training['batch_size']} ({drawn}), {training['optimizer']}{how}; {steps}."
    )


def heading(block: Block, network: str, differing: Mapping[str, Any]) -> str:
    """Return `glyphs · test_resnet`, with the factors that distinguish the block: `(model.dim = 128)`.

    A pretrained network is called frozen or fine-tuned.
    """
    others = {name: value for name, value in differing.items() if name != "model.backbone"}
    factors = ", ".join(f"{name} = {_short(value)}" for name, value in others.items())
    kind = "frozen" if block.factors.get("model.backbone") == "frozen" else "fine-tuned"
    network += f", {kind}" if block.factors.get("backbone.pretrained") else ""
    return f"{block.data} · {network}" + (f" ({factors})" if factors else "")


def _short(value: object) -> str:
    """Return a factor's value as text; only the first twelve digits of a fingerprint."""
    text = str(value)
    return text[:12] if len(text) >= 40 and text.isalnum() else text
