"""A caption explains a mark exactly where the format shows it: over random boards, in every format."""

import csv
import io
import re
from dataclasses import dataclass

import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from harness.fairness import rules
from harness.leaderboard import captions, filters, published
from harness.leaderboard.compose import board_of
from harness.reports import terminal
from harness.reports.formats import comma_separated, latex, markdown, parquet, web
from harness.runs.record import Epoch

ARMS = ("contrastive", "contrastive+input", "contrastive+feature", "proxy_anchor", "untrained", "pixels")
THEIRS = published.load()
NOISE = (0.000, 0.002, -0.001, 0.001, -0.002)


@dataclass(frozen=True)
class Shape:
    """What a random board is made of: the mean score of every arm, seeds, and what else it shows."""

    means: dict
    seeds: int
    spread: float
    known: bool
    inflated: bool
    folds: bool


SHAPES = st.builds(
    Shape,
    st.dictionaries(st.sampled_from(ARMS), st.sampled_from((0.3, 0.5, 0.502, 0.6)), min_size=1),
    st.sampled_from((1, 3, 5)),
    st.sampled_from((0.0, 1.0)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@pytest.fixture
def shaped(make_trial, make_record):
    def board_of_shape(shape):
        place = {"dataset": "cub200", "backbone": "resnet50", "dim": 512} if shape.known else {}
        records = []
        for number, (arm, mean) in enumerate(sorted(shape.means.items())):
            floor = arm in ARMS[-2:]
            for seed in range(1 if arm == "pixels" else shape.seeds):
                score = mean + shape.spread * (3 * NOISE[seed] + NOISE[(seed + number) % 5])
                more = {"curve": (), "selected_epoch": None} if floor else {}
                if shape.inflated and not floor:
                    more["best_test_epoch"] = {"R@1": score + 0.01}
                trial = make_trial(arm, seed, **place)
                trials = trial.model_copy(update={"folds": 2 if shape.folds else None}).each_fold()
                records += [make_record(trial, score, **more) for trial in trials]
        return board_of(records, published=THEIRS, findings=rules.over_records(records))

    return board_of_shape


def shown_in_terminal(board, watched):
    stream = io.StringIO()
    on = Console(file=stream, force_terminal=True, width=300, markup=False, emoji=False) if watched else None
    terminal.show(board, on or terminal.console(stream))
    text = stream.getvalue()
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    start = min(plain.find(word) for word in ("Protocol fair",) if word in plain)
    table, said = plain[:start], plain[start:]
    numbers = [code for code, _ in re.findall(r"\x1b\[([\d;]+)m *(\d+\.\d+)", text)]
    return table, said, [any(code in style.split(";") for style in numbers) for code in ("1", "4")]


def agree(said, seen):
    """Every clause stands where its mark does: {how the clause begins: whether the mark is there}."""
    assert {clause: clause in said for clause in seen} == seen


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES)
def test_a_clause_stands_in_a_caption_exactly_where_its_mark_stands_in_the_format(shape, shaped):
    board = shaped(shape)
    for watched in (True, False):
        table, said, (bold, underlined) = shown_in_terminal(board, watched)
        common = {
            "†: ": "†" in table.split("FAIR")[0],
            "‡: ": "‡" in table,
            "untrained: ": "untrained" in shape.means,
            "pixels: ": "pixels" in shape.means,
            "Folds: ": shape.folds,
            "own baseline": "×" in table,
        }
        styles = {"Bold: ": bold, "Underlined: ": underlined}
        agree(said, {**common, **styles, "as published": False})
        assert watched or not (bold or underlined)
    text = markdown.render(board)
    table, _, said = text.partition("Protocol fair")
    rows = [line for line in table.splitlines() if line.startswith("|")]
    seen = {"Bold: ": "| **" in table, "Underlined: ": "<u>" in table, **common}
    agree(said, {**seen, "as published": any("(Metrix README)" in row for row in rows)})
    agree(table, {"Inflation: ": any("inflation of" in row for row in rows)})
    page = web.render(board)
    held = page.partition('id="data">')[2]
    seen = {"Bold: ": '"b' in held, "Underlined: ": bool(re.search('"b?s', held)), **common}
    said = page.partition('<footer class="what">')[2].partition("</footer>")[0]
    agree(said, {"Grey: ": bool(board.blocks[0].published), **{k: v for k, v in seen.items() if k[0] not in "BU"}})
    for one in re.findall(r"\\begin\{table\}.*?\\end\{table\}", latex.render(board), re.DOTALL):
        caption, body = one.split(r"\toprule")
        body = body.split(r"\begin{minipage}")[0]
        agree(
            caption.lower(),
            {
                "bold: ": r"\bfseries" in body,
                "underlined: ": r"\underline" in body,
                r"$^\dagger$: ": r"$^\dagger$" in body,
                r"$^\ddagger$: ": r"$^\ddagger$" in body,
                "with a citation: ": r"\cite" in body and "theirs" not in body,
                "theirs: ": "theirs" in body,
                "inflation: ": "inflation" in body,
                "own baseline": r"$\times$" in body,
                "class-disjoint folds": shape.folds,
            },
        )


def test_a_narrowed_board_explains_only_what_it_still_prints(shaped):
    board = shaped(Shape({"contrastive": 0.5, "proxy_anchor": 0.3, "untrained": 0.4}, 5, 1.0, True, True, False))
    assert "‡: below its own starting point (FAIR-26)." in captions.of_board(board)
    part = filters.of_rows(board, {"loss": ["contrastive"]})
    said = " ".join((*captions.of_board(part), *part.blocks[0].notes))
    assert "‡" not in said
    assert "FAIR-26" not in said
    assert "untrained: " not in said
    assert {row.loss for row in part.blocks[0].published} == {"contrastive"}


def test_marks_of_metrics_that_are_not_printed_are_not_explained(make_trial, make_record):
    def scores(base, apart):
        return {"R@1": base, "MAP@R": base, "R@2": base + apart}

    records = [
        make_record(make_trial(arm, seed), test=scores(0.5 + NOISE[seed], apart))
        for arm, apart in (("contrastive", 0.0), ("contrastive+input", 0.1 + 1e-3 * NOISE[1]))
        for seed in range(5)
    ]
    records[-1] = records[-1].model_copy(update={"test": scores(0.5 + NOISE[4], 0.101)})
    board = board_of(records)
    (block,) = board.blocks
    cells = {metric: block.cell(block.rows[1], metric) for metric in ("R@1", "R@2")}
    assert (cells["R@1"].significant, cells["R@2"].significant) == (False, True)
    assert "No variant differs significantly from its baseline" in " ".join(captions.of_board(board))
    assert "†" not in " ".join(captions.of_board(board))
    assert "†: differs significantly from its baseline" in web.render(board)


def test_the_row_below_its_start_is_marked_with_both_numbers_in_every_format(make_trial, make_record, tmp_path):
    """Two rows of three, each with its own numbers; one fell on validation alone."""

    def curve(first, last):
        values = enumerate((first, 0.1, last))
        return tuple(
            Epoch(epoch=e, loss=1.0, lr=0.1, validation={"MAP@R": v}, train_s=1, validation_s=1) for e, v in values
        )

    records = [
        make_record(make_trial("contrastive"), 0.609),
        make_record(make_trial("proxy_anchor"), 0.8, curve=curve(0.884, 0.881)),
        make_record(make_trial("nca"), 0.75, curve=curve(0.5, 0.6)),
        make_record(make_trial("untrained"), 0.706, curve=(), selected_epoch=None),
    ]
    board = board_of(records, findings=rules.over_records(records))
    place = "FAIR-26 glyphs/test_resnet"
    sentences = (
        f"{place}/contrastive: R@1 60.9 is below the untrained network's 70.6 and MAP@R 30.4 below its 35.3.",
        f"{place}/proxy_anchor: validation MAP@R 88.1 at the chosen epoch 2, 88.4 before training.",
    )
    assert {row.arm for row in board.blocks[0].rows if row.below_start} == {"contrastive", "proxy_anchor"}
    stream = io.StringIO()
    terminal.show(board, terminal.console(stream))
    lines = list(csv.DictReader(io.StringIO(comma_separated.render(board))))
    for arm, sentence in zip(("contrastive", "proxy_anchor"), sentences, strict=True):
        assert all(sentence in line["findings"] for line in lines if line["arm"] == arm)
    assert not any("FAIR-26" in line["findings"] for line in lines if line["arm"] in ("nca", "untrained"))
    first = pandas.read_parquet(parquet.write(board, tmp_path))
    assert first.findings.fillna("").tolist() == [line["findings"] for line in lines]
    formats = {
        "terminal": (" ".join(stream.getvalue().split()), ("contrastive‡", "proxy_anchor‡")),
        "markdown": (markdown.render(board).replace("\\", ""), ("| contrastive‡ |", "| proxy_anchor‡ |")),
        "latex": (
            latex.render(board).replace(r"\_", "_"),
            (r"Contrastive$^\ddagger$ &", r"Proxy-anchor$^\ddagger$ &"),
        ),
        "page": (web.render(board), ()),
    }
    for name, (text, marks) in formats.items():
        for part in (*sentences, *marks):
            assert part in text, f"{part!r} is not in the {name}"
        assert "nca‡" not in text
        assert "NCA$" not in text


@pytest.fixture
def pretrained(make_trial, make_record):
    """Return a function that makes a record of a network with published weights."""

    def record(arm, r1, model=(), images=(), weights=True, **changes):
        trial = make_trial(arm)
        trial = trial.model_copy(
            update={
                "backbone": trial.backbone.model_copy(update={"pretrained": weights}),
                "model": trial.model.model_copy(update=dict(model)),
                "images": trial.images.model_copy(update=dict(images)),
            }
        )
        floor = {"curve": (), "selected_epoch": None} if trial.arm.at == "floor" else {}
        return make_record(trial, test={"R@1": r1, "MAP@R": 0.5}, **floor, **changes)

    return record


def test_rows_below_the_features_are_counted_in_each_metric(pretrained):
    """Floors are not counted, nor rows that equal the features."""
    rows = {"contrastive": 0.4, "contrastive+input": 0.59, "proxy_anchor": 0.6, "nca": 0.7, "untrained": 0.1}
    records = [pretrained("features", 0.6), *(pretrained(arm, r1) for arm, r1 in rows.items())]
    said = (
        "features: the pooled features of the pretrained network at unit length, without a head (zero-shot); nothing "
        "is random, so n = 1. Below it: 2 of 4 trained rows in R@1, 0 of 4 trained rows in MAP@R."
    )
    assert said in captions.of_board(board_of(records))
    alone = captions.of_board(board_of([pretrained("features", 0.6), pretrained("untrained", 0.1)]))
    assert f"{said.partition(' Below')[0]}" in alone
    assert not any("zero-shot" in sentence for sentence in captions.of_board(board_of(records[1:])))


@pytest.mark.parametrize(
    ("model", "images", "how"),
    [
        ({}, {}, ", fine-tuned as a whole, avg pooling to 16 dimensions, BatchNorm train, images of 32 px."),
        (
            {"backbone": "frozen"},
            {},
            ", frozen: only the head trains, on the features of the test crop, avg pooling to 16 dimensions, images "
            "of 32 px.",
        ),
        (
            {"backbone": "frozen", "hidden": 64},
            {"views": 5},
            ", frozen: only the head trains, on the features of 5 views, avg pooling to 16 dimensions through 64 "
            "hidden units, images of 32 px.",
        ),
    ],
)
def test_the_caption_says_what_trains(pretrained, model, images, how):
    (block,) = board_of([pretrained("contrastive", 0.6, model, images)]).blocks
    assert f"Network: test_resnet, pretrained weights{how}" in " ".join(block.caption)
    (random,) = board_of([pretrained("contrastive", 0.6, weights=False)]).blocks
    assert "test_resnet, random initial weights, avg pooling" in " ".join(random.caption)


def test_a_trained_and_a_frozen_network_have_a_table_each_with_its_own_count(pretrained):
    frozen = {"backbone": "frozen"}
    records = [
        *(pretrained("features", 0.6), pretrained("contrastive", 0.5)),
        *(pretrained("features", 0.6, frozen), pretrained("contrastive", 0.7, frozen)),
    ]
    board = board_of(records)
    assert [len(block.rows) for block in board.blocks] == [2, 2]
    assert sorted(block.factors["model.backbone"] for block in board.blocks) == ["frozen", "trained"]
    assert "Below it: 1 of 2 trained rows in R@1, 0 of 2" in " ".join(captions.of_board(board))


def test_compiled_rows_have_a_table_of_their_own_whose_heading_and_caption_say_so(make_trial, make_record):
    trials = [make_trial(compile=way) for way in ("none", "network", "cuda_graphs")]
    blocks = board_of([make_record(trial) for trial in trials]).blocks
    said = {block.factors["training.compile"]: (block.heading, " ".join(block.caption)) for block in blocks}
    assert said.keys() == {"none", "network", "cuda_graphs"}
    assert all(f"(training.compile = {way})" in heading for way, (heading, _) in said.items())
    assert ", adamw; " in said["none"][1]
    assert ", adamw, compiled (its seconds include compiling); " in said["network"][1]
    assert ", adamw, compiled with CUDA graphs (its seconds include compiling); " in said["cuda_graphs"][1]
