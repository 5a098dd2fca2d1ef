"""Random command lines end with a message and an exit code, never with a traceback."""

import contextlib
import io
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli import main
from harness.data.cache import default_folder
from harness.runs.run import Run
from tests.harness import random_inputs
from tests.harness.test_random_grids import INTERNAL

CACHE = str(default_folder())
GRID = """
name: tiny
datasets: [folder]
backbones: [test_resnet]
losses: [contrastive]
levels: [baseline]
floors: []
seeds: [0]
model: {dim: 4}
images: {side_px: 8}
training: {epochs: 1, batch_size: 8, examples_per_class: 2}
"""
PLACES = st.sampled_from(
    ["RUN", "RUN", "GRID", "DATA", "GRID", "RUN", "NEW", "BROKEN", "nowhere", "/dev/null", "", "s3://", "\udce9"]
)
WORDS = st.sampled_from(
    ["contrastive", "contrastve", "folder", "0", "1", "-1", "\u00b2", "1e9", "nan", "none", "", "=", "x=1"]
)
WORDS |= st.text(st.characters(exclude_characters="\0"), max_size=3)
ARMS = st.sampled_from(["contrastive", "contrastive+input", "untrained", "pixels", "contrastive[", "contrastive@0x"])
SETS = st.builds(
    "{}={}".format,
    st.sampled_from(["epochs", "seeds", "ks", "folds", "protocol", "datasets", "lr", "stage", "x", ""]),
    st.sampled_from(["1", "-1", "[1]", "[]", "{}", "nan", "null", "tuned", "paper", "2", "[["]) | st.text(max_size=2),
)
OPTIONS = {  # option → its values
    "--data": st.just("DATA") | PLACES,
    "--cache": st.just(CACHE),
    "--out": PLACES,
    "--set": SETS,
    "--losses": WORDS,
    "--levels": WORDS,
    "--datasets": WORDS,
    "--seeds": WORDS,
    "--arms": ARMS,
    "--arm": ARMS | WORDS,
    "--seed": WORDS,
    "--fold": WORDS,
    "--device": st.sampled_from(["cpu", "cuda", "cuda:9", "gpu", "meta", ""]),
    "--ranks": st.sampled_from(["1", "0", "-1", "x", "99"]),
    "--only": WORDS | st.sampled_from(["dataset=folder", "level=baseline", "seed=0", "arm=x", "loss="]),
    "--format": st.sampled_from(["csv", "latex,csv", "markdown", "pdff", ""]) | WORDS,
    "--metrics": st.sampled_from(["R@1", "R@3", "MAP@R,R@1", "r@1", ""]) | WORDS,
    "--to": st.sampled_from(["NEW/x.svg", "RUN", "/x.doc", "NEW"]),
    "--neighbours": st.sampled_from(["1", "0", "x", "999999"]),
    "--batch": st.sampled_from(["7", "0", "x"]),
    "--weights": PLACES,
    "--backbone": st.sampled_from(["resnet50", "ResNet-50", ""]) | WORDS,
    "--dim": st.sampled_from(["512", "128", "0"]) | WORDS,
    "--loss": WORDS,
    "--metric": st.sampled_from(["R@1", "MAP@R", "r1"]) | WORDS,
    "--side": st.sampled_from(["8", "0", "-1", "x"]),
    "--option": st.sampled_from(["test_share=0.5", "test_share=2", "test_share=nan", "x=1", "=", "test_share=[1]"])
    | SETS,
}
ANYWHERE = [["--debug"], ["--help"], ["--no-such"], ["-1"], ["--"]]
COMMANDS = {
    "plan": (
        st.just("GRID") | PLACES,
        ["--data", "--out", "--set", "--losses", "--levels", "--datasets", "--seeds", "--arms"],
    ),
    "trial": (
        st.just("GRID") | PLACES,
        ["--arm", "--data", "--out", "--set", "--seed", "--fold", "--device", "--ranks", "--losses"],
    ),
    "status": (PLACES, []),
    "logs": (PLACES, []),
    "stop": (PLACES, []),
    "report": (PLACES, ["--out", "--only", "--format", "--metrics", "--data"]),
    "power": (PLACES, []),
    "trace": (PLACES, []),
    "audit": (PLACES, []),
    "verify": (PLACES, ["--only", "--data", "--device"]),
    "draw": (PLACES, ["--to"]),
    "embed": (PLACES, ["--out", "--device", "--neighbours", "--batch", "--weights"]),
    "export": (PLACES, ["--weights"]),
    "doctor": (st.sampled_from(["folder", "manifest", "omniglot", "cub200", "foldr", ""]), ["--data", "--option"]),
    "prepare": (st.sampled_from(["folder", "manifest", "foldr"]), ["--data", "--option", "--side"]),
    "list": (st.sampled_from(["losses", "datasets", "stages", "grids", "backbones", "x"]), []),
    "published": (
        st.sampled_from(["cub200", "sop", "cub20"]),
        ["--backbone", "--dim", "--loss", "--metric", "--format"],
    ),
    "retry": (PLACES, ["--only"]),
    "": (st.just(""), []),
}


@st.composite
def command_lines(draw):
    """Draw a command with arguments, some of them missing, wrong or repeated."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    first, options = COMMANDS[command]
    words = [command, draw(first)]
    if command in ("logs", "trace", "draw", "list"):
        words += draw(st.lists(WORDS | ARMS, max_size=1))
    always = [name for name in ("--arm", "--data") if name in options]
    if command in ("embed", "export"):
        words += [draw(WORDS | ARMS), draw(st.just("NEW") | st.just("DATA" if command == "embed" else "NEW"))]
    if command in ("plan", "trial"):
        words += ["--out", draw(st.sampled_from(["RUN", "NEW", "NEW"]))]
    for option in [*always, *draw(st.lists(st.sampled_from(options), max_size=3) if options else st.just([]))]:
        words += [option, draw(OPTIONS[option])]
    if draw(st.integers(0, 9)) == 0:
        words += draw(st.sampled_from(ANYWHERE))
    return words


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A folder with data, a grid and a run of it."""
    place = tmp_path_factory.mktemp("words")
    random_inputs.write_tree(place / "DATA", [])
    (place / "GRID").write_text(GRID)
    (place / "BROKEN").write_bytes(b"name: [\xff")
    words = ["trial", "GRID", "--arm", "contrastive", "--data", "DATA", "--cache", CACHE, "--out", "RUN"]
    words += ["--set", "keep=weights"]
    assert run_command(place, words)[0] == 0
    assert len(Run(place / "RUN").records()) == 1
    return place


def run_command(place, words):
    """Run a command in a folder; return its exit code and its output."""
    out = io.StringIO()
    before = os.getcwd()
    os.chdir(place)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                code = main(words)
            except SystemExit as end:  # argparse
                code = end.code
    finally:
        os.chdir(before)
    return code, out.getvalue()


@given(command_lines())
@random_inputs.examples(30)
def test_every_command_ends_with_a_message(ready, words):
    with tempfile.TemporaryDirectory() as aside:
        words = [word.replace("NEW", f"{aside}/new") for word in words]
        code, text = run_command(ready, words)
    assert code in (0, 1, 2), text
    assert "--debug" in words or "Traceback" not in text, text
    assert "--debug" in words or not INTERNAL.search(text), text
