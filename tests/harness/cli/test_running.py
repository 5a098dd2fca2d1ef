"""Commands that run trials: common mistakes, and what does not run again."""

import re
from pathlib import Path

import pytest

from harness.cli import main
from harness.cli.running import load_grid
from harness.errors import GridError
from harness.runs import storage
from harness.runs.run import Run

ROOT = Path(__file__).parents[3]

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
        (("run", "GRID", "--set", "folds=9"), "16 training classes are too few for 9"),
        (("run", "GRID", "--set", "gpus_per_trial=1.5"), "a share up to 1, or a whole number of GPUs"),
        (("run", "GRID", "--track", "tensorbord"), "did you mean 'tensorboard'"),
        (("run", "GRID", "--track", "mlflow"), "pip install '.[trackers]'"),
        (("report", "/nowhere/at/all"), "is not a run folder"),
        (("list", "stages", "resnet5"), "did you mean"),
        (("list", "stages"), "list stages resnet50"),
        (("trial", "GRID", "--arm", "contrastive+embeding"), "embeding"),
        (("trial", "GRID", "--arm", "contrastive", "--fold", "1"), "has no folds; add them with --set folds=4"),
        (("trial", "GRID", "--arm", "contrastive", "--set", "folds=2", "--fold", "3"), "has folds 1 to 2"),
        (
            ("trial", "GRID", "--arm", "contrastive", "--set", "folds=9"),
            "16 training classes are too few for 9",
        ),
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


def test_an_unknown_stage_is_reported_with_the_known_ones(run):
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
    assert "4 trials to run, about" in text


def test_compute_matched_baselines_are_in_the_plan(run):
    code, text = run(
        "plan", "GRID", "--set", "compute_matched=true", "--set", "metrix.weight=0.2", arms="contrastive+input"
    )
    assert code == 0, text
    assert text.count("contrastive+longer-s0") == 2  # one for the feature level, one for the input level


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--arm triplet+input", "triplet+input: triplet has no Metrix form: "),
        ("--arm contrastive+embeding", "no level named 'embeding'; did you mean 'embedding'?"),
        ("--arm contrastve", "no loss named 'contrastve'; did you mean 'contrastive'?"),
        ("--arm contrastive --device gpu", "no device 'gpu' on this machine; there are: cpu"),
        ("--arm contrastive --device cuda:77", "no device 'cuda:77' on this machine; there are: cpu"),
        ("--arm contrastive --seed -1", "'-1' is not a whole number from 0 to"),
        ("--arm contrastive --ranks 0", "'0' is not a whole number of at least 1"),
        ("--arm contrastive --set protocol=tuned", "is tuned by a search, which needs metrix-bench run"),
    ],
)
def test_a_trial_that_cannot_run_gives_the_reason(command, words, sentence):
    code, text = command("trial", "mine.yaml", *words.split())
    assert code == 2, text
    assert sentence in text
    assert "Traceback" not in text


def test_a_trial_with_other_settings_needs_another_folder(command, tmp_path):
    code, text = command("trial", "mine.yaml", "--arm", "contrastive", "--set", "epochs=2")
    assert (code, "training.epochs was 1 and is now 2" in text, "--out" in text) == (2, True, True)
    assert not (tmp_path / "results").exists()
    code, text = command("trial", "mine.yaml", "--arm", "contrastive")
    assert (code, "nothing to run" in text) == (0, False), text
    pattern = (
        r"glyphs-\S+\nepoch 0/1  before training  validation: R@1 \d\d\.\d  MAP@R \d\d\.\d\n"
        r"epoch 1/1  loss -?\d\.\d{4}  validation: R@1 \d\d\.\d  MAP@R \d\d\.\d\n"
        r"test, epoch 1: R@1 \d+\.\d  R@2 \d.*\nrecord: results/runs/mine/records/glyphs-\S+\.json\n"
    )
    assert re.fullmatch(pattern, text), text
    assert max(map(len, text.splitlines()[:-2])) <= 80
    code, text = command("trial", "mine.yaml", "--arm", "contrastive", "--set", "keep=weights")
    assert (code, "nothing to run: its record is from " in text) == (0, True)
    assert "keep=weights does not change finished trials, which have keep=embeddings" in text
    out = ("--out", "results/runs/mine")
    code, text = command("trial", "mine.yaml", "--arm", "triplet", "--set", "batch_size=40", *out)
    assert (code, "training.batch_size was 20 and is now 40" in text, "--out" in text) == (2, True, True), text
    with Run(tmp_path / "results/runs/mine").lock():
        code, text = command("trial", "mine.yaml", "--arm", "triplet")
    assert (code, "is in use by process" in text) == (2, True)


def test_a_diverging_trial_is_recorded_as_a_failure(command, tmp_path):
    words = ("--set", "lr=1e30", "--set", "clip_value=null", "--set", "epochs=3", "--out", "out")
    code, text = command("trial", "mine.yaml", "--arm", "contrastive", *words)
    assert (code, "Traceback" in text) == (1, False), text
    assert "failed, diverged: the loss is nan at epoch " in text
    assert [failure.kind for failure in Run(tmp_path / "out").failures()] == ["diverged"]


@pytest.mark.parametrize("words", ["run mine.yaml --out full", "trial mine.yaml --arm contrastive --out full"])
def test_a_folder_with_other_files_is_refused(command, tmp_path, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    code, text = command(*words.split())
    assert code == 2
    assert "full is not a run and contains other files (thesis.tex): name a new or empty folder" in text
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_finished_run_reports_that_and_which_changes_have_no_effect(command, tmp_path, monkeypatch):
    from harness import launch
    from harness.launch.plan import Plan

    assert command("trial", "mine.yaml", "--arm", "contrastive")[0] == 0
    run = Run(tmp_path / "results/runs/mine")

    def run_grid(grid, *_, **__):
        trials = tuple(trial for trial in grid.trials() if run.record(trial))
        return launch.Outcome(Plan(trials, ()), tuple(run.records()), (), False, 1.0, 1.0)

    monkeypatch.setattr(launch, "run_grid", run_grid)
    monkeypatch.setattr(launch, "supervised", lambda attempt, *_: attempt())
    code, text = command("run", "mine.yaml", "--set", "keep=weights")
    assert code == 0
    assert "nothing to run: 1 trial already done\n" in text
    assert "keep=weights does not change finished trials, which have keep=embeddings: name another folder " in text
    assert "open results/runs/mine/leaderboard.html in a browser\n" in text


def test_a_bucket_with_other_objects_is_refused(command, bucket):
    storage.of(bucket).write("thesis.tex", b"x")
    for words in (("trial", "mine.yaml", "--arm", "contrastive"), ("plan", "mine.yaml")):
        code, text = command(*words, "--out", bucket)
        assert code == 2
        assert f"{bucket} is not a run and contains other files (thesis.tex): name a new or empty folder\n" in text


WITH_WEIGHTS = {
    "one": "[{name: test_resnet, pretrained: true}]",
    "other": "[{name: test_vit, pretrained: true}, test_resnet]",
    "none": "[test_resnet]",
    "two": "[{name: test_resnet, pretrained: true}, {name: test_vit, pretrained: true}]",
}


@pytest.fixture
def loaded(tmp_path):
    """Return a function that loads a grid with a file of weights, and returns what each network starts from."""
    for name, networks in WITH_WEIGHTS.items():
        dataset = "omniglot" if name == "other" else "glyphs"
        text = f"name: {name}\ndatasets: [{dataset}]\nbackbones: {networks}\nlosses: [contrastive]\n"
        (tmp_path / f"{name}.yaml").write_text(text)

    def loaded(*names, **only):
        path = tmp_path / f"{names[0]}.yaml"
        if len(names) > 1:
            path = tmp_path / "all.yaml"
            path.write_text(f"name: all\ninclude: [{', '.join(f'{name}.yaml' for name in names)}]\n")
        trials = load_grid(str(path), (), only, Path("w.pth")).trials()
        return {(t.dataset.name, t.backbone.name): t.backbone.pretrained for t in trials}

    return loaded


def test_a_file_of_weights_replaces_the_published_ones(loaded):
    resnet, vit = ("glyphs", "test_resnet"), ("omniglot", "test_vit")
    assert loaded("one") == {resnet: "w.pth"}
    assert loaded("other") == {vit: "w.pth", ("omniglot", "test_resnet"): False}
    assert loaded("one", "other") == {resnet: "w.pth", vit: "w.pth", ("omniglot", "test_resnet"): False}
    assert loaded("two", backbones=["test_resnet"]) == {resnet: "w.pth"}


def test_a_file_of_weights_needs_one_network(loaded):
    for names in (("none",), ("other", "none")):
        with pytest.raises(GridError) as error:
            loaded(*names)
        assert error.value.problems == (
            "--weights w.pth: the grid has no pretrained network (pretrained: true in backbones)",
        )
    with pytest.raises(GridError, match="has 2 pretrained networks, test_resnet, test_vit; choose one with --backbo"):
        loaded("two")


FROZEN = (
    *("--set", "model.backbone=frozen", "--set", "examples_per_class=2", "--set", "batch_size=8"),
    *("--set", "levels=[baseline,feature]", "--set", "backbones=[{name: test_resnet, pretrained: true}]"),
)


def test_the_features_and_a_frozen_trial_run_from_the_command_line(command, tmp_path, weights_of):
    words = ("trial", "mine.yaml", *FROZEN, "--weights", weights_of(), "--device", "cpu", "--out", "out")
    for arm in ("features", "contrastive+feature", "contrastive"):
        code, text = command(*words, "--arm", arm)
        assert code == 0, text
    records = {record.arm: record for record in Run(tmp_path / "out").records()}
    assert records["features"].curve == ()
    assert {record.trial.backbone.pretrained for record in records.values()} == {weights_of()}
    code, text = command(*words, "--arm", "contrastive+input")
    assert (code, "there is no mixed image to compute them of" in text) == (2, True)
    code, text = command(*words, "--arm", "contrastive", "--ranks", "2", "--seed", "1")
    assert (code, "ranks = 2: a frozen backbone trains only a head" in text) == (2, True)
    code, text = command("trial", "mine.yaml", "--arm", "features", "--out", "other")
    assert (code, "test_resnet has no pretrained weights, whose features could be compared" in text) == (2, True)
