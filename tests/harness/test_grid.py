"""Grids: files become trials, and all their mistakes are reported at once, in the words of the file."""

import pytest

from harness.config import Trial
from harness.errors import GridError
from harness.grid import Grid
from harness.grids import shipped

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


def floors(load, text):
    return [f"{t.backbone.name} {t.arm.loss} s{t.seed}" for t in load(text).trials() if t.arm.at == "floor"]


PRETRAINED = GOOD.replace("stage: layer3", "pretrained: true")


def test_the_features_of_a_pretrained_network_are_a_floor_once_whether_it_trains_or_not(load):
    once = [
        "test_resnet features s0",
        "test_resnet untrained s0",
        "test_resnet pixels s0",
        "test_resnet untrained s1",
    ]
    assert floors(load, PRETRAINED) == once
    assert floors(load, PRETRAINED + "model: {backbone: frozen}\n") == once
    assert floors(load, PRETRAINED + "floors: [pixels]\n") == [once[0], once[2]]
    assert floors(load, PRETRAINED + "floors: [pixels, features]\n") == [once[0], once[2]]
    assert floors(load, PRETRAINED + "floors: []\n") == []
    assert len(floors(load, PRETRAINED + "folds: 3\nfloors: [features]\n")) == 3  # one for each fold


def test_a_random_network_has_no_features_to_start_from(load):
    assert floors(load, GOOD) == ["test_resnet untrained s0", "test_resnet pixels s0", "test_resnet untrained s1"]
    both = GOOD.replace("[{name: test_resnet, stage: layer3}]", "[test_vit, {name: test_resnet, pretrained: true}]")
    assert [name for name in floors(load, both) if "features" in name] == ["test_resnet features s0"]


def test_tables_of_trained_and_frozen_networks_do_not_mix(load):
    trained, frozen = (load(PRETRAINED, f"model.backbone={word}").trials() for word in ("trained", "frozen"))
    assert not {t.id for t in trained} & {t.id for t in frozen}
    assert {t.shared["model.backbone"] for t in frozen} == {"frozen"}
    assert trained[-1].shared != frozen[-1].shared


FROZEN = {
    "backbones: [test_vit, test_resnet]\nmodel: {backbone: frozen}": (
        "model.backbone: frozen, but test_vit, test_resnet have no pretrained weights; in backbones, set pretrained "
        "to true or to a file"
    ),
    "backbones: [{name: test_vit, pretrained: true}, test_resnet]\nmodel: {backbone: frozen}": (
        "model.backbone: frozen, but test_resnet has no pretrained weights; in backbones, set pretrained to true or "
        "to a file"
    ),
    "images: {views: 2}": (
        "images.views: 2 views are for a frozen backbone; a trained one sees new crops in every step. Set "
        "model.backbone to frozen, or remove views"
    ),
    "backbones: [{name: test_vit, pretrained: true}]\nmodel: {backbone: frozen}\ntraining: {compile: network}": (
        "training.compile: network compiles the backbone, which is frozen and computes its features once; set "
        "compile to none"
    ),
    "training: {compile: cuda_graphs}\nresources: {gpus_per_trial: 2}": (
        "training.compile: cuda_graphs works on one GPU, but gpus_per_trial is 2; set compile to none, or "
        "gpus_per_trial to at most 1"
    ),
    "backbones: [{name: test_vit, pretrained: true}]\nmodel: {backbone: frozen}\nresources: {gpus_per_trial: 2}": (
        "resources.gpus_per_trial: 2 GPUs for a frozen backbone, which trains only a head, on one device; use at "
        "most 1"
    ),
    "images: {views: 0}": "images.views: 0 is not valid: it should be greater than or equal to 1",
    "model: {hidden: 0}": "model.hidden: 0 is not valid: it should be greater than or equal to 1",
    "model: {backbone: frosen}": "model.backbone: no backbone named 'frosen'; did you mean 'frozen'?",
    "losses: []\nfloors: [features]": "losses: there is no loss, arm or floor to run",
}


@pytest.mark.parametrize("change", FROZEN)
def test_what_a_frozen_backbone_cannot_do(load, change):
    keys = tuple(f"{line.partition(':')[0]}:" for line in change.splitlines())
    text = "\n".join(line for line in GOOD.splitlines() if not line.startswith(keys))
    assert problems(load, f"{text}\n{change}\n") == (FROZEN[change],)


def test_a_share_of_a_gpu_is_enough_for_a_frozen_backbone(load):
    for gpus in ("auto", "0.5", "1", "0"):
        assert load(PRETRAINED, "model.backbone=frozen", "images.views=3", f"gpus_per_trial={gpus}").trials()


def test_a_level_may_have_settings_of_its_own(load):
    text = GOOD + "metrix: {weight: 0.2}\nlevels: [baseline, embedding, {at: input, hardest: 3, weight: 0.5}]\n"
    grid = load(text)
    arms = {trial.arm.label for trial in grid.trials() if trial.arm.loss == "contrastive"}
    assert arms == {"contrastive", "contrastive+embedding[weight=0.2]", "contrastive+input[weight=0.5,hardest=3]"}
    assert Grid.model_validate(grid.model_dump(mode="json")).trials() == grid.trials()
    assert len(load(text, levels=["input"]).levels) == 1
    assert "did you mean 'hardest'" in problems(load, text.replace("hardest: 3", "hardst: 3"))[0]


def test_a_rival_is_a_level_like_any_other(load):
    """The shared settings of Metrix are not its own; an option that is called `at` goes into `options`."""
    levels = "[baseline, mochi, {at: xbm, size: 50}, {at: i_mix, options: {at: embedding}}]"
    grid = load(GOOD + f"metrix: {{weight: 0.2}}\nlevels: {levels}\n")
    arms = [trial.arm.label for trial in grid.trials() if trial.arm.loss == "contrastive" and trial.seed == 0]
    assert arms == [f"contrastive{level}" for level in ("", "+mochi", "+xbm[size=50]", "+i_mix[at=embedding]")]
    assert Grid.model_validate(grid.model_dump(mode="json")).trials() == grid.trials()
    (only,) = load(GOOD + "levels: [baseline]\n", levels=["mochi"]).levels
    assert str(only) == "mochi"


@pytest.mark.parametrize(
    ("levels", "problem"),
    [
        ("[mochy]", "levels.0: no level named 'mochy'; did you mean 'mochi'?"),
        ("[{at: xbm, sise: 4}]", "levels.0: no option of xbm named 'sise'; did you mean 'size'?"),
        ("[mochi, mochi]", "levels: mochi is listed twice"),
    ],
)
def test_a_rival_that_cannot_be_is_refused_in_the_words_of_the_grid(load, levels, problem):
    assert problems(load, f"{GOOD}levels: {levels}\n") == (problem,)


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
        "seeds.0: -1 is not valid",
    ):
        assert part in found


def test_overrides(load):
    assert load(GOOD, "epochs=20").training.epochs == 20
    assert load(GOOD, "training.weight_decay=1e-2").training.weight_decay == 0.01
    assert load(GOOD, "metrix.weight=0.2", losses=["contrastive"], seeds=["5"]).seeds == (5,)
    assert [loss.lr for loss in load(GOOD, losses=["multi_similarity"]).losses] == [2e-4]
    assert "did you mean 'epochs'" in problems(load, GOOD, "epoch=20")[0]
    assert "expected key=value" in problems(load, GOOD, "epochs")[0]
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
        ("folds: 1", "folds: 1 is not valid: it should be greater than or equal to 2"),
        ("folds: 4\nprotocol: paper", "folds: 4 folds for validation, but protocol paper has no validation"),
        ("training: {batch_size: 101}", "batch_size 101 is not a multiple of examples_per_class 5"),
        ("images: {crop_scale: [0.9, 0.2]}", "crop_scale is [0.9, 0.2]"),
        ("metrix: {at: input}", "the levels of a grid are listed in `levels`"),
        ("arms: ['contrastive+feture']", "no level named 'feture'; did you mean 'feature'?"),
        ("arms: ['contrastive[margin]']", "'margin' is not of the form key=value"),
        ("datasets: 3", "datasets: 3 is not valid"),
    ],
)
def test_contradictions(load, change, sentence):
    key = change.partition(":")[0]
    text = "\n".join(line for line in GOOD.splitlines() if not line.startswith(f"{key}:")) + "\n" + change
    assert sentence in " | ".join(problems(load, text))


def test_not_yaml_and_missing(load):
    assert "not YAML" in problems(load, "name: [")[0]
    with pytest.raises(GridError, match="did you mean 'quick'"):
        Grid.load("quik")


@pytest.mark.parametrize("name", shipped())
def test_every_grid_that_ships_is_valid(name):
    assert Grid.load(name).name == name


MISTAKES = {
    "seeds: 3": "seeds: 3 is not valid: it should be a list, written [a, b]",
    "seeds: 0-4": "seeds: '0-4' is not valid: it should be a list, written [a, b]",
    "seeds: [010]": "seeds.0: '010' is not valid: it should be a whole number",
    "seeds:": "seeds: nothing is not valid: it should be a list, written [a, b]",
    "training: {lr: .nan}": "training.lr: nan is not valid: it should be a finite number",
    "training: {lr: 1e309}": "training.lr: inf is not valid: it should be a finite number",
    "training: {lr: '3'}": "training.lr: '3' is not valid: it should be a number",
    "training: {lr: true}": "training.lr: true is not valid: it should be a number",
    "training: {epochs: true}": "training.epochs: true is not valid: it should be a whole number",
    "training: {epochs: 3.5}": "training.epochs: 3.5 is not valid: it should be a whole number",
    "training: {epochs: 1:30}": "training.epochs: '1:30' is not valid: it should be a whole number",
    "training: {clip_value: .inf}": "training.clip_value: inf is not valid: it should be a finite number",
    "training: 3": "training: 3 is not valid: it should be settings, written key: value",
    "model: {dim: 1000000000}": "model.dim: 1000000000 is not valid: it should be less than or equal to 65536",
    "metrix: {alpha: .inf}": "metrix.alpha: inf is not valid: it should be a finite number",
    "images: {crop_scale: [0.5, .nan]}": "images.crop_scale.1: nan is not valid: it should be a finite number",
    "losses: [{name: triplet, options: {margin: .inf}}]": "losses.0.options: margin is inf; a number must be finite",
    "levels: feature": "levels: 'feature' is not valid: it should be a list, written [a, b]",
    "floors: [untraned]": "floors.0: no floor named 'untraned'; did you mean 'untrained'?",
    "protocol: fiar": "protocol: no protocol named 'fiar'; did you mean 'fair'?",
    "name: yes": "name: true is not valid: it should be text, in quotes if YAML reads it as something else",
    "resources: {gpus_per_trial: x}": "resources.gpus_per_trial: 'x' is not valid: it should be a number, or "
    "it should be 'auto'",
    "arms: contrastive": "arms: 'contrastive' is not valid: it should be a list, written [a, b]",
    "arms: ['contrastive[margin=1,margin=2]']": "arms: margin is given twice",
    "arms: ['contrastive@0x']": "arms: longer: 0.0 is not valid: it should be greater than 0",
    "parts: []": "parts: no such setting; to combine grids, write include: [grid, …]",
    "training: {epochs: 3, epochs: 4}": "epochs: this key occurs twice, in line 6 and line 6",
    "seeds: [0]\nseeds: [1]": "seeds: this key occurs twice, in line 6 and line 7",
    "about: &a [*a]": "this is not YAML: line 7, column 8: an anchor contains itself",
    "---\nname: other": "this is not YAML: line 7, column 1: there are several documents (---); a grid is one",
}


@pytest.mark.parametrize("change", MISTAKES, ids=str)
def test_each_mistake_is_one_sentence_in_the_words_of_the_file(load, change):
    key = change.partition(":")[0]
    lines = [line for line in GOOD.strip().splitlines() if not line.startswith(f"{key}:")]
    assert problems(load, "\n".join([*lines, change])) == (MISTAKES[change],)


def test_keys_written_twice_are_named_with_their_lines_and_merged_ones_are_not(load):
    text = GOOD + "model: &m\n  dim: 8\n  dim: 16\n"
    assert problems(load, text) == ("dim: this key occurs twice, in line 9 and line 10",)
    merged = GOOD.replace("losses: [", "losses: [{<<: {lr: 1.0e-2}, lr: 2.0e-2, name: triplet}, ")
    assert load(merged).losses[0].lr == 0.02


@pytest.mark.parametrize("section", ["training", "metrix", "model", "images", "resources", "search"])
def test_an_empty_section_keeps_its_defaults(load, section):
    text = "\n".join(line for line in GOOD.splitlines() if not line.startswith(section)) + f"\n{section}:\n"
    assert load(text, "epochs=3", "lr=1e-3", "metrix.weight=0.3") == load(GOOD, "metrix.weight=0.3")


def test_values_on_the_command_line_are_yaml(load):
    assert problems(load, GOOD, "lr=[1")[0].startswith("--set lr=[1: this is not YAML: line 1, column 3")
    assert problems(load, GOOD, "lr=1e309") == ("training.lr: inf is not valid: it should be a finite number",)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"name: a\nabout: caf\xe9\n", "the file is not UTF-8 text: line 2 contains the byte 0xe9"),
        (b"\x89PNG\r\n", "the file is not UTF-8 text: line 1 contains the byte 0x89"),
        (b"", "the file contains no settings; see the shipped grids for examples"),
        (b"\0", "this is not YAML: unacceptable character #x0000"),
    ],
)
def test_files_that_are_not_grids(tmp_path, data, problem):
    (tmp_path / "grid.yaml").write_bytes(data)
    with pytest.raises(GridError) as caught:
        Grid.load(tmp_path / "grid.yaml")
    assert caught.value.problems[0].startswith(problem)
    with pytest.raises(GridError, match="this is a folder; a grid is a YAML file"):
        Grid.load(tmp_path)


def test_a_name_keeps_every_entry_that_has_it(load):
    text = GOOD + "levels: [baseline, {at: feature, stage: layer3}, {at: feature, hardest: 3}]\n"
    labels = [str(level) for level in load(text, levels=["feature"]).levels]
    assert labels == ["feature[stage=layer3]", "feature[hardest=3]"]
    assert problems(load, GOOD, seeds=["0-4"])[0] == "--seeds 0-4: a seed is a whole number"
    assert problems(load, GOOD, arms=["contrastive"])[0] == (
        "--arms contrastive: the grid lists no arms: choose among its losses and levels with --losses and --levels, "
        "or run metrix-bench trial --arm"
    )


def test_a_grid_that_includes_others_sets_nothing_that_they_set(load):
    found = problems(load, "name: all\ninclude: [quick]\nseeds: [0]\ntraining: {epochs: 1}\ntrainig: {}\n")
    assert found == (
        "seeds, training: a grid that includes others sets only name, version, about, resources; set it in "
        "the included grids, or with --set for all of them",
        "trainig: no setting named 'trainig'; there are: about, include, name, resources, version",
    )
    assert problems(load, "name: all\ninclude: quick\n") == (
        "include: 'quick' is not a list of grids, such as [quick, mine.yaml]",
    )
    assert problems(load, "include: [quick]\n") == ("name: this setting is required",)


def test_included_files_are_relative_to_the_including_file(tmp_path, monkeypatch):
    (tmp_path / "grids/parts").mkdir(parents=True)
    (tmp_path / "grids/all.yaml").write_text("name: all\ninclude: [parts/one.yaml]\n")
    (tmp_path / "grids/parts/one.yaml").write_text("name: one\ninclude: [two.yaml]\n")
    (tmp_path / "grids/parts/two.yaml").write_text(GOOD)
    (tmp_path / "two.yaml").write_text("name: another\n")
    monkeypatch.chdir(tmp_path)
    assert len(Grid.load("grids/all.yaml").trials()) == len(Grid.load("grids/parts/two.yaml").trials()) > 0
    (tmp_path / "grids/parts/two.yaml").write_text("name: two\ninclude: [../all.yaml]\n")
    with pytest.raises(GridError, match=r"cannot include itself: all\.yaml → one\.yaml → two\.yaml → all\.yaml"):
        Grid.load("grids/all.yaml")


def test_two_included_grids_may_not_disagree_within_a_table(load, tmp_path):
    for name, epochs in (("one", 3), ("two", 4)):
        (tmp_path / f"{name}.yaml").write_text(
            GOOD.replace("name: small", f"name: {name}").replace("epochs: 3", f"epochs: {epochs}")
        )
    assert problems(load, "name: both\ninclude: [one.yaml, two.yaml]\n") == (
        "include: one and two run glyphs with test_resnet under different settings",
    )
    same = load("name: both\ninclude: [one.yaml, one.yaml]\n")
    assert len(same.trials()) == len(load(GOOD).trials())


def test_an_arm_written_in_two_ways_is_one_arm(load):
    text = GOOD.replace("{name: multi_similarity, lr: 2e-4}", "triplet")
    assert problems(load, text + "arms: [contrastive+input, 'contrastive[margin=0.3]']\n") == (
        "arms: contrastive+input is listed twice, in two forms",
    )
    assert problems(load, text + "levels: [feature, {at: feature, stage: layer3}]\n") == tuple(
        f"arms: {loss}+feature[stage=layer3] is listed twice, in two forms" for loss in ("contrastive", "triplet")
    )


@pytest.mark.parametrize(
    ("level", "problem"),
    [
        ("{at: baseline, weight: 0.3}", "levels: weight has no effect at level baseline; remove it"),
        ("{at: input, stage: layer3}", "levels: stage has no effect at level input; remove it"),
        ("{at: embedding, stage: layer3}", "levels: stage has no effect at level embedding; remove it"),
    ],
)
def test_an_unused_setting_of_a_level_is_refused(load, level, problem):
    assert problems(load, f"{GOOD}levels: [{level}]\n") == (problem,)


def test_shared_settings_may_be_unused_by_one_level(load):
    grid = load(GOOD + "metrix: {stage: layer2, weight: 0.3}\nlevels: [baseline, input, feature]\n")
    labels = {trial.arm.label for trial in grid.trials() if trial.arm.loss == "contrastive"}
    assert labels == {"contrastive", "contrastive+input[weight=0.3]", "contrastive+feature[stage=layer2,weight=0.3]"}


def test_a_key_that_is_no_text_is_no_setting(load):
    assert problems(load, GOOD + "model: {1: 2}\n") == (
        "model.1: no setting named '1'; there are: backbone, dim, hidden, norm, pooling",
    )
