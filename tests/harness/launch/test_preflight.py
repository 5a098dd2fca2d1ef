"""The reasons that make a node unfit, as sentences."""

from dataclasses import replace
from hashlib import sha256

import pytest

from harness.config import Choice, Training
from harness.launch.preflight import facts, mismatches
from harness.runs.run import Run
from harness.training.pictures import Sources


@pytest.fixture
def here(tmp_path):
    run = Run(tmp_path / "run")
    run.prepare()
    found = facts([Choice(name="glyphs", options={"classes": 24})], Sources(run.address), run.identity)
    return replace(found, weights={"w.safetensors": "a" * 64})


def test_a_machine_matches_itself(here):
    assert mismatches(here, here) == []
    assert len(here.datasets["glyphs"]) == 128


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: {"versions": {**f.versions, "torch": "1.0"}}, "torch is 1.0 there and"),
        (lambda f: {"versions": {**f.versions, "python": "3.9.1"}}, "python is 3.9.1 there"),
        (lambda f: {"code": "0" * 64}, "its metrix-bench differs from the one here"),
        (lambda f: {"datasets": {"glyphs": "a" * 128}}, "glyphs differs: aaaaaaaaaaaa there, "),
        (lambda f: {"datasets": {"glyphs": "error: no folder /data"}}, "glyphs: no folder /data"),
        (lambda f: {"datasets": {}}, "glyphs: it was not reported"),
        (
            lambda f: {"weights": {"w.safetensors": "b" * 64}},
            "w.safetensors differs: bbbbbbbbbbbb there, aaaaaaaaaaaa",
        ),
        (lambda f: {"weights": {}}, "w.safetensors: it was not reported"),
        (lambda f: {"problems": ("the disk is full",)}, "the disk is full"),
    ],
)
def test_differences_are_named(here, change, reason):
    (sentence,) = mismatches(here, replace(here, **change(here)))
    assert reason in sentence


def test_a_node_without_the_run_folder_the_data_or_its_gpus(tmp_path):
    run = Run(tmp_path / "run")
    run.prepare()
    other = Run(tmp_path / "other")
    other.prepare()
    glyphs = [Choice(name="glyphs", options={"classes": 24})]
    assert "is another folder than the driver's" in facts(glyphs, Sources(other.address), run.identity).problems[0]
    gone = facts(glyphs, Sources(str(tmp_path / "gone")), run.identity)
    assert "mount the share that the driver writes to" in gone.problems[0]
    believed = facts(glyphs, Sources(run.address), run.identity, counted_gpus=64)
    assert "the cluster counts 64 GPUs here, but torch sees" in believed.problems[0]
    missing = facts([Choice(name="cub200")], Sources(run.address, tmp_path / "nothing"), run.identity)
    assert missing.datasets["cub200"].startswith("error: ")


def test_weights_are_those_of_the_driver(tmp_path):
    """Two machines may have different files at one path; half of the trials would start from others."""
    run = Run(tmp_path / "run")
    run.prepare()
    file = tmp_path / "w.safetensors"

    def collected():
        return facts([], Sources(run.address), run.identity, [str(file)])

    file.write_bytes(b"one")
    here = collected()
    assert here.weights == {str(file): sha256(b"one").hexdigest()}
    assert mismatches(here, collected()) == []
    file.write_bytes(b"two")
    one, two = (sha256(content).hexdigest()[:12] for content in (b"one", b"two"))
    assert mismatches(here, collected()) == [f"{file} differs: {two} there, {one} here"]
    file.unlink()
    assert mismatches(here, collected()) == [f"{file}: No such file or directory"]


def test_a_node_that_cannot_compile(tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    run.prepare()

    def problems(mode, device="cpu"):
        trainings = [Training(), Training(compile=mode), Training(compile=mode, lr=0.1)]
        return facts([], Sources(run.address, device=device), run.identity, trainings=trainings).problems

    assert problems("none") == ()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert problems("none") == ()
    assert problems("network") == (
        "training.compile is network, but there is no compiler g++ on the PATH: install one, or choose none",
    )
