"""What a newcomer gets wrong, and the sentence that says so before anything runs."""

import pytest

from harness.cli import main
from harness.config import grids

GRID = """
name: tiny
datasets: [{{name: glyphs, options: {{classes: 16}}}}]
backbones: [{backbone}]
losses: [contrastive]
levels: [baseline, feature]
arms: [{arms}]
seeds: [0]
model: {{dim: 16}}
images: {{side_px: 32}}
training: {{epochs: 1, batch_size: 20}}
"""


@pytest.fixture
def run(tmp_path, capsys):
    def run(*words, backbone="{name: test_resnet, stage: layer3}", arms=""):
        grid = tmp_path / "tiny.yaml"
        grid.write_text(GRID.format(backbone=backbone, arms=arms))
        words = [str(grid) if word == "GRID" else str(word) for word in words]
        if words[0] in ("run", "plan", "trial"):
            words += ["--out", str(tmp_path / "out")]
        code = main(words)
        captured = capsys.readouterr()
        assert not (tmp_path / "out" / "records").exists()
        return code, captured.out + captured.err

    return run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("run", "qick"), "did you mean 'quick'"),
        (("run", "GRID", "--set", "epoch=3"), "did you mean 'epochs'"),
        (("run", "GRID", "--losses", "contrastve"), "did you mean 'contrastive'"),
        (("run", "GRID", "--set", "examples_per_class=20"), "batch of one class"),
        (("run", "GRID", "--set", "batch_size=100"), "need 20 classes; glyphs has 12 for training"),
        (("run", "GRID", "--set", "batch_size=200"), "more than the 180 training images of glyphs"),
        (("run", "GRID", "--datasets", "omniglot"), "no entry of the grid's datasets"),
        (("run", "omniglot"), "omniglot"),
        (("run", "omniglot", "--data", "/nowhere/at/all"), "/nowhere/at/all"),
        (("run", "GRID", "--set", "folds=9"), "16 training classes make no 9 folds"),
        (("run", "GRID", "--set", "gpus_per_trial=1.5"), "a share up to 1, or a whole number of GPUs"),
        (("run", "GRID", "--track", "tensorbord"), "did you mean 'tensorboard'"),
        (("run", "GRID", "--track", "mlflow"), "pip install '.[trackers]'"),
        (("report", "/nowhere/at/all"), "is not a run folder"),
        (("list", "stages", "resnet5"), "did you mean"),
        (("list", "stages"), "list stages resnet50"),
        (("trial", "GRID", "--arm", "contrastive+embeding"), "embeding"),
        (("trial", "GRID", "--arm", "contrastive", "--fold", "1"), "has no folds; --set folds=4 gives it some"),
        (("trial", "GRID", "--arm", "contrastive", "--set", "folds=2", "--fold", "3"), "has folds 1 to 2"),
        (("trial", "GRID", "--arm", "contrastive", "--set", "folds=9"), "16 training classes make no 9 folds"),
        (("run", "GRID", "--set", "folds=2", "--set", "protocol=paper"), "protocol paper has no validation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_words(run, words, sentence):
    code, text = run(*words)
    assert code == 2, text
    assert sentence in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backbone": "tset_resnet"}, "did you mean 'test_resnet"),
        ({"backbone": "{name: test_resnet, stage: layer9}"}, "layer9"),
        (
            {"backbone": "{name: test_resnet, pretrained: /nowhere/weights.safetensors}"},
            "/nowhere/weights.safetensors",
        ),
        ({"backbone": "{name: test_resnet, options: {nonsense: 1}}"}, "nonsense"),
        ({"arms": "triplet+embedding"}, "triplet"),
        ({"arms": "'contrastive+feature[stage=layer2,hardest=2]'"}, "partners are drawn at random"),
    ],
    ids=str,
)
def test_wrong_grids(run, change, sentence):
    code, text = run("run", "GRID", **change)
    assert code == 2, text
    assert sentence in text


def test_a_stage_that_does_not_exist_is_answered_with_those_that_do(run):
    _, text = run("run", "GRID", backbone="{name: test_resnet, stage: layer9}")
    assert all(stage in text for stage in ("layer1", "layer2", "layer3"))


def test_published_weights_without_a_network_are_one_sentence(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    code, text = run("run", "GRID", backbone="{name: resnet18, pretrained: true}")
    assert code == 2, text
    assert "resnet18" in text
    assert "pretrained" in text


def test_a_plan_lists_what_would_run_and_what_it_would_take(run):
    code, text = run("plan", "GRID")
    assert code == 0, text
    assert "4 trials" in text
    assert "glyphs-test_resnet-contrastive+feature-s0" in text
    assert "4 to run, about" in text


def test_compute_matched_baselines_stand_in_the_plan(run):
    code, text = run(
        "plan", "GRID", "--set", "compute_matched=true", "--set", "metrix.weight=0.2", arms="contrastive+input"
    )
    assert code == 0, text
    assert text.count("contrastive+longer-s0") == 2  # one for the feature level, one for the input level


@pytest.mark.parametrize("what", ["losses", "datasets", "grids"])
def test_lists(run, what):
    code, text = run("list", what)
    assert code == 0
    known = {"losses": ["contrastive", "proxy_anchor"], "datasets": ["glyphs", "omniglot"], "grids": grids()}
    assert all(name in text for name in known[what])


def test_stages_of_a_backbone(run):
    code, text = run("list", "stages", "test_resnet")
    assert code == 0
    assert "layer1" in text
