"""Grids: what is written becomes values; what is wrong is said, all of it, in the words of the file."""

import pytest

from harness.config import Arm, Grid, GridError, Level, Trial, grids

GOOD = """
name: small
datasets: [glyphs]
backbones: [{name: test_resnet, stage: layer3}]
losses: [contrastive, {name: multi_similarity, lr: 2e-4}]
seeds: [0, 1]
training: {epochs: 3, lr: 1e-3}
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides, **only):
        path = tmp_path / "grid.yaml"
        path.write_text(text)
        return Grid.load(path, overrides, only)

    return load


def problems(load, text, *overrides, **only):
    with pytest.raises(GridError) as caught:
        load(text, *overrides, **only)
    return caught.value.problems


def test_the_product_of_a_grid(load):
    trials = load(GOOD).trials()
    assert len(trials) == 2 * 2 * 4 + 2 + 1  # seeds × losses × levels, untrained twice, pixels once
    assert len({trial.id for trial in trials}) == len(trials)
    assert [trial.seed for trial in trials] == sorted(trial.seed for trial in trials)
    assert {t.training.lr for t in trials if t.arm.loss == "multi_similarity"} == {2e-4}
    assert {t.training.lr for t in trials if t.arm.loss == "contrastive"} == {1e-3}
    assert {t.arm.metrix.stage for t in trials if t.arm.at == "feature"} == {"layer3"}


def test_a_network_may_scale_every_learning_rate(load):
    trials = load(GOOD.replace("stage: layer3", "lr_scale: 0.1")).trials()
    assert {t.training.lr for t in trials if t.arm.loss == "multi_similarity"} == {2e-5}
    assert {t.training.lr for t in trials if t.arm.loss in ("contrastive", "untrained")} == {1e-4}


def test_a_level_may_have_settings_of_its_own(load):
    text = GOOD + "metrix: {weight: 0.2}\nlevels: [baseline, embedding, {at: input, hardest: 3, weight: 0.5}]\n"
    grid = load(text)
    arms = {trial.arm.label for trial in grid.trials() if trial.arm.loss == "contrastive"}
    assert arms == {"contrastive", "contrastive+embedding[weight=0.2]", "contrastive+input[weight=0.5,hardest=3]"}
    assert Grid.model_validate(grid.model_dump(mode="json")).trials() == grid.trials()
    assert len(load(text, levels=["input"]).levels) == 1
    assert "did you mean 'hardest'" in problems(load, text.replace("hardest: 3", "hardst: 3"))[0]


def test_a_grid_may_include_others(load, tmp_path):
    for name, epochs in (("one", 3), ("two", 4)):
        dataset = {"one": "glyphs", "two": "omniglot"}[name]
        (tmp_path / f"{name}.yaml").write_text(
            GOOD.replace("epochs: 3", f"epochs: {epochs}").replace("glyphs", dataset)
        )
    text = f"name: both\ninclude: [{tmp_path}/one.yaml, {tmp_path}/two.yaml]\n"
    grid = load(text)
    assert {(t.dataset.name, t.training.epochs) for t in grid.trials()} == {("glyphs", 3), ("omniglot", 4)}
    assert [t.seed for t in grid.trials()] == sorted(t.seed for t in grid.trials())
    assert Grid.model_validate(grid.model_dump(mode="json")).trials() == grid.trials()
    assert {t.dataset.name for t in load(text, "epochs=9", datasets=["omniglot"]).trials()} == {"omniglot"}
    assert "did you mean 'omniglot'" in problems(load, text, datasets=["omnigloot"])[0]


def test_all_arms_of_a_backbone_share_what_a_table_must_share(load):
    assert len({str(trial.shared) for trial in load(GOOD).trials()}) == 1


def test_a_trial_survives_json_and_its_id_ends_in_the_hash_of_its_content(load):
    trial = load(GOOD).trials()[-1]
    again = Trial.model_validate_json(trial.model_dump_json())
    assert (again, again.id) == (trial, trial.id)
    assert trial.id.startswith("glyphs-test_resnet-multi_similarity+input-s1-")
    other = trial.model_copy(update={"training": trial.training.model_copy(update={"epochs": 4})})
    assert other.id != trial.id


def test_a_trial_without_folds_has_the_id_it_had_before_there_were_folds(make_trial):
    trial = make_trial("contrastive+input")
    assert trial.id == "glyphs-test_resnet-contrastive+input-s0-7e41e473"
    assert trial.digest == "7e41e47343ffa9a983bca2031b24a03ad7f97b79e1c1407fc2592dceee65dfae"
    assert not {"fold", "folds"} & trial.shared.keys()
    assert (trial.each_fold(), trial.whole) == ([trial], trial)


def test_folds_are_trials_of_their_own_that_share_all_else(load):
    whole, folded = load(GOOD).trials(), load(GOOD, "folds=4").trials()
    assert len(folded) == 4 * len(whole)
    assert [(t.arm.label, t.seed) for t in folded[::4]] == [(t.arm.label, t.seed) for t in whole]
    assert [t.fold for t in folded[:5]] == [1, 2, 3, 4, 1]
    first, second = folded[-2:]
    assert first.id.startswith("glyphs-test_resnet-multi_similarity+input-s1-f3of4-")
    assert (first.shared, first.shared["folds"]) == (second.shared, 4)
    assert first.whole == second.whole != first
    assert first.whole.each_fold() == folded[-4:]
    assert len({trial.id for trial in (*whole, *folded)}) == 5 * len(whole)
    assert Trial.model_validate_json(first.model_dump_json()) == first


def test_every_mistake_of_a_file_is_named_at_once_with_the_nearest_valid_name(load):
    text = """
name: small
datasets: [glyps]
backbones: [test_resnet]
losses: [contrastve, {name: multi_similarity, options: {betta: 18}}]
trainning: {}
seeds: [-1]
training: {epochz: 3}
"""
    found = " | ".join(problems(load, text))
    for part in (
        "no dataset named 'glyps'; did you mean 'glyphs'?",
        "'contrastve'; did you mean 'contrastive'?",
        "no parameter of multi_similarity named 'betta'; did you mean 'beta'",
        "no setting named 'trainning'; did you mean 'training'?",
        "training.epochz: no setting named 'epochz'; did you mean 'epochs'?",
        "seeds.0: -1 does not fit",
    ):
        assert part in found


def test_overrides(load):
    assert load(GOOD, "epochs=20").training.epochs == 20
    assert load(GOOD, "training.weight_decay=1e-2").training.weight_decay == 0.01
    assert load(GOOD, "metrix.weight=0.2", losses=["contrastive"], seeds=["5"]).seeds == (5,)
    assert [loss.lr for loss in load(GOOD, losses=["multi_similarity"]).losses] == [2e-4]
    assert "did you mean 'epochs'" in problems(load, GOOD, "epoch=20")[0]
    assert "written key=value" in problems(load, GOOD, "epochs")[0]
    assert "no entry of the grid's losses named 'proxy_ancor'" in problems(load, GOOD, losses=["proxy_ancor"])[0]


def test_a_loss_that_the_grid_does_not_list_runs_at_its_defaults(load):
    (loss,) = load(GOOD, losses=["proxy_anchor"]).losses
    assert (loss.name, loss.options, loss.lr) == ("proxy_anchor", {}, None)


@pytest.mark.parametrize(
    "key", ["epochs", "lr", "weight", "alpha", "dim", "side_px", "hardest", "threads", "batch_size"]
)
def test_common_settings_have_a_short_name(load, key):
    value = {"lr": 0.1, "weight": 0.3, "alpha": 1.5}.get(key, 50)
    assert load(GOOD, f"{key}={value}") != load(GOOD)


def test_overrides_leave_files_as_they_are(load):
    load(GOOD, "epochs=20")
    assert load(GOOD).training.epochs == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("seeds: [0, 0]", "seeds: 0 is listed twice"),
        ("folds: 1", "folds: 1 does not fit: input should be greater than or equal to 2"),
        ("folds: 4\nprotocol: paper", "folds: 4 folds of validation classes, and protocol paper has no validation"),
        ("training: {batch_size: 101}", "batch_size 101 is not a multiple of examples_per_class 5"),
        ("images: {crop_scale: [0.9, 0.2]}", "crop_scale is [0.9, 0.2]"),
        ("metrix: {at: input}", "the levels of a grid stand in `levels`"),
        ("arms: ['contrastive+feture']", "'feture' does not fit"),
        ("arms: ['contrastive[margin]']", "'margin' is not written key=value"),
        ("datasets: 3", "datasets: 3 does not fit"),
    ],
)
def test_contradictions(load, change, sentence):
    key = change.partition(":")[0]
    text = "\n".join(line for line in GOOD.splitlines() if not line.startswith(f"{key}:")) + "\n" + change
    assert sentence in " | ".join(problems(load, text))


def test_not_yaml_and_not_there(load):
    assert "it is not YAML" in problems(load, "name: [")[0]
    with pytest.raises(GridError, match="did you mean 'quick'"):
        Grid.load("quik")


@pytest.mark.parametrize(
    "text",
    [
        "contrastive",
        "contrastive[margin=0.3]",
        "multi_similarity+embedding",
        "multi_similarity+feature[stage=layer3,pairs=pos-neg]",
        "contrastive[margin=0.3]+input[weight=0.2,hardest=3]",
        "contrastive+feature[hardest=all]",
        "untrained",
    ],
)
def test_an_arm_is_written_as_it_is_read(text):
    assert Arm.parse(text).label == text


def test_a_default_that_is_spelled_out_is_the_same_arm():
    assert Arm.parse("multi_similarity[beta=18]+embedding[weight=0.4]") == Arm.parse("multi_similarity+embedding")


def test_level_has_the_keywords_and_defaults_of_metrix():
    import inspect

    import metrix

    parameters = inspect.signature(metrix.Metrix).parameters
    theirs = {k: p.default for k, p in parameters.items() if k not in ("loss", "generator")}
    assert Level().model_dump() == theirs


@pytest.mark.parametrize("name", grids())
def test_every_grid_that_ships_is_valid(name):
    assert Grid.load(name).name == name
