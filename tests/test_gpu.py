"""The command for a GPU, run on the CPU: all of it to its end, and how it handles pieces that fail."""

import json
import os
import subprocess
import sys
import time
import zipfile
from importlib import import_module
from pathlib import Path
from unittest import SkipTest

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from tests.gpu import finetune, pack, plan, test_losses
from tests.gpu.__main__ import main
from tests.gpu.place import STAND_IN, Place, draw
from tests.gpu.plan import Piece
from tests.gpu.table import table

ROOT = Path(__file__).parents[1]
NOT_PROMISED = (
    "ray", "faiss", "optuna", "scipy", "pyarrow", "rich", "jinja2", "matplotlib", "fontTools", "pytest", "hypothesis",
    "sklearn", "pytorch_metric_learning",
)  # fmt: skip


def test_passes(place):
    place.note("something", 1.5, "s", spread=(1.0, 2.0), rounds=3)


test_passes.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  # pytest must not collect it: it is a piece of the plan below


def says_and_hangs(place):
    place.note("half", 2, "images/s")
    time.sleep(600)


def dies(place):
    os._exit(7)


def fails(place):
    raise ValueError("it is wrong")


def wants(place):
    import_module("a_package_that_nobody_has")


def skips(place):
    raise SkipTest("there is no need")


PLAN = tuple(
    Piece(name, f"{__name__}:{name}", needs_s, limit_s)
    for name, needs_s, limit_s in (
        ("test_passes", 0, 60),  # first, so that the time of the import is not that of the one that hangs
        ("says_and_hangs", 0, 0.2),
        ("dies", 0, 60),
        ("fails", 0, 60),
        ("wants", 0, 60),
        ("skips", 0, 60),
    )
)


@pytest.fixture
def pictures(tmp_path):
    draw(tmp_path / "pictures", *STAND_IN.few, *STAND_IN.drawn_px)
    return tmp_path / "pictures"


def results(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_the_whole_command_succeeds_with_the_promised_packages_alone(pictures, tmp_path):
    assert pack.main([str(pictures), str(tmp_path / "pictures.zip")]) == 0
    state = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    safetensors.torch.save_file(state, weights := tmp_path / "test_efficientnet.safetensors")
    (tmp_path / "hidden").mkdir()
    hide = f"import sys\nfor name in {NOT_PROMISED!r}: sys.modules[name] = None\n"
    (tmp_path / "hidden/sitecustomize.py").write_text(hide)
    command = [sys.executable, "-m", "tests.gpu", "--stand-in", "--out", tmp_path / "out", "--minutes", "20"]
    done = subprocess.run(
        [*command, "--data", tmp_path / "pictures.zip", "--weights", weights],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "hidden"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    lines = results(tmp_path / "out")
    ends = {line["piece"]: (line["outcome"], line.get("why")) for line in lines if "outcome" in line}
    assert ends == {p.name: ("passed" if p.is_test else "measured", None) for p in plan.PLAN}, done.stderr
    assert done.returncode == 0
    assert {line["device"] for line in lines} == {"stand-in: cpu"}
    text = (tmp_path / "out/table.md").read_text()
    assert "· What one GPU says: stand-in: cpu\n" in text
    assert "| figure | measured on a stand-in: cpu |" in text
    assert "A processor stood in for the GPU, with small sizes: no number here says anything of a GPU." in text
    assert "140 photographs that were given, 20 classes; weights: test_efficientnet.safetensors" in text
    figures = {line["what"] for line in lines if "what" in line}
    for wanted in (
        *(f"{name}, 32 px, bf16, batch 10, {path}" for name in STAND_IN.networks for path in (
            "bare: forward, backward, optimiser", "trial, cache path", "trial, cache path: waiting for data",
            "trial, classical path, 1 cores", "trial, classical path, 1 cores: waiting for data")),
        *(f"test_resnet, a step of contrastive+{level} ÷ baseline" for level in ("embedding", "feature", "input")),
        "contrastive, n = 10, d = 512, loss alone",
        *(f"contrastive, n = 20, d = 512, loss and Metrix at {level} ÷ loss" for level in ("embedding", "input")),
        "evaluation of 300 × 16, R@1 to R@100 and MAP@R",
        "test_resnet, 32 px, bf16, batch 10, cache path: an epoch of 30 images",
        *(f"a step of the ResNet, training.compile, {way}"
          for way in ("none", "network", "seconds of network ÷ none")),
        "a step of the vision transformer, training.compile, network: the first time",
    ):  # fmt: skip
        assert wanted in figures, wanted
    with zipfile.ZipFile(tmp_path / "out/records.zip") as kept:
        records = [json.loads(kept.read(name)) for name in kept.namelist()]
    assert sorted(record["arm"] for record in records) == sorted(finetune.ARMS)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "log.txt",
        "records.zip",
        "results.jsonl",
        "table.md",
    ]


def test_a_piece_that_hangs_dies_or_fails_does_not_stop_the_others(tmp_path, capsys):
    code = main(["--stand-in", "--plan", __name__, "--out", str(tmp_path)])
    ends = {line["piece"]: line for line in results(tmp_path) if "outcome" in line}
    outcomes = {name: line["outcome"] for name, line in ends.items()}
    assert code == 1
    assert outcomes == {
        "says_and_hangs": "ended",
        "dies": "ended",
        "fails": "failed",
        "wants": "skipped",
        "skips": "skipped",
        "test_passes": "passed",
    }
    assert ends["says_and_hangs"]["why"].endswith(" s: it was ended at its time limit")
    assert ends["dies"]["why"].endswith("its process ended with 7; log.txt has its last words")
    assert ends["fails"]["why"] == "ValueError: it is wrong"
    assert ends["wants"]["why"] == "it needs the package a_package_that_nobody_has, which is not installed"
    printed = capsys.readouterr().out
    assert "| half | 2 images/s |" in printed, "what was measured before the end is kept"
    assert "| something | 1.5 s (1 to 2, n = 3) |" in printed
    assert "- skips: there is no need" in printed


def test_pieces_that_do_not_fit_into_the_time_are_reported_as_skipped(tmp_path, capsys):
    assert main(["--minutes", "0", "--only", "scores,options", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "- scores: it needs about 15 s and 0 s were left" in printed
    assert "- options: it needs about 90 s and 0 s were left" in printed


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (
            ["--only", "scors"],
            "cannot run: --only scors: there is no such piece; there are tests, figures, losses, prec",
        ),
        (["--data", "nowhere"], "cannot run: --data nowhere: there is no such file or folder"),
        (
            ["--weights", "none.safetensors"],
            "cannot run: --weights none.safetensors: there is no such file or folder",
        ),
        (["--data", "harness"], "cannot run: --data harness holds "),
    ],
)
def test_impossible_arguments_are_refused_before_anything_runs(arguments, printed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(printed)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_reports_that(tmp_path, capsys):
    assert main(["--only", "losses", "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("cannot run: torch sees no GPU (torch ")
    assert printed.endswith("; --stand-in tries the command without one\n")


def test_figures_of_different_machines_are_not_put_into_one_table():
    head = {"device": "NVIDIA H100", "driver": "1", "torch": "2", "revision": "a", "uncommitted": None, "data": "d"}
    more = {"timm": "1", "python": "3.12", "cores": 16, "weights": "random"}
    line = {
        **head,
        "piece": "resnet",
        "kind": "figure",
        "at": "2026-11-26T00:00:00Z",
        "what": "bare",
        "unit": "images/s",
    }
    lines = [
        {**line, "value": 1234.5},
        {**line, "value": 2345.6},
        {**line, "value": 99.0, "device": "stand-in: cpu"},
        {**line, "value": 98.0, "revision": "b"},
    ]
    text = table(lines, {**head, **more}, "python -m tests.gpu")
    assert text.startswith(
        "## 2026-11-26 · What one GPU says: NVIDIA H100\n\n`python -m tests.gpu`; NVIDIA H100, driver 1"
    )
    assert "| figure | measured |\n|---|---|\n| bare | 2,346 images/s |\n" in text
    assert "99" not in text
    assert "98" not in text


def test_a_pack_keeps_all_classes_within_its_size_and_makes_large_images_smaller(pictures, tmp_path, capsys):
    Image.new("RGB", (600, 900), "red").save(pictures / "AA" / "0000.jpg")
    sizes = sum(file.stat().st_size for file in pictures.rglob("*.jpg"))
    assert pack.main([str(pictures), str(tmp_path / "half.zip"), "--mb", str(0.75 * sizes / 1e6)]) == 0
    with zipfile.ZipFile(tmp_path / "half.zip") as packed:
        names = packed.namelist()
        with Image.open(packed.open("AA/00000.jpg")) as image:
            assert image.size == (256, 384)
    counts = {name: sum(n.startswith(f"{name}/") for n in names) for name in {n.partition("/")[0] for n in names}}
    assert len(counts) == 20
    assert len(set(counts.values())) == 1
    assert 2 <= next(iter(counts.values())) <= 5
    assert (tmp_path / "half.zip").stat().st_size <= 0.75 * sizes
    assert pack.main([str(tmp_path / "nothing"), str(tmp_path / "none.zip")]) == 2
    assert "cannot pack: dataset 'folder': there is no " in capsys.readouterr().err


def test_the_comparison_with_the_cpu_can_fail():
    exact = [torch.tensor(2.0), torch.ones(4), torch.full((2,), 1e-9)]
    off = [torch.tensor(2.0), torch.tensor([1.0, 1.0, 1.0, 1.004]), torch.zeros(2)]
    assert test_losses.distance(exact, exact) == 0
    assert test_losses.distance(off, exact) == pytest.approx(0.002, rel=1e-3)
    assert test_losses.errors(off, exact) == (0.0, pytest.approx(0.002, rel=1e-3))
    assert test_losses.distance([torch.tensor(torch.nan), *exact[1:]], exact) == float("inf")


def test_a_gradient_of_zeros_on_the_device_fails_the_comparison(monkeypatch, tmp_path):
    right, place = test_losses.computed, Place(torch.device("cpu"), tmp_path, tmp_path)

    def wrong(name, level, device, norm, bf16):
        parts = right(name, level, device, norm, bf16)
        return [parts[0], *(0 * part for part in parts[1:])] if bf16 and device is place.device else parts

    monkeypatch.setattr(test_losses, "computed", wrong)
    with pytest.raises(AssertionError, match="contrastive, input, bfloat16"):
        test_losses.test_values_and_gradients_are_those_of_the_cpu(place)
