"""The values of an experiment: arms and trials, their notation and digests."""

import json
import pickle
import re

import pytest
from pydantic import ValidationError

from harness.config import Arm, Images, Level, Trial
from harness.errors import GridError, UserError
from harness.grid import Grid


def test_a_trial_survives_json_and_its_id_ends_in_the_hash_of_its_content(make_trial):
    trial = make_trial("multi_similarity+input", seed=1)
    again = Trial.model_validate_json(trial.model_dump_json())
    assert (again, again.id) == (trial, trial.id)
    assert trial.id.startswith("glyphs-test_resnet-multi_similarity+input-s1-")
    other = trial.model_copy(update={"training": trial.training.model_copy(update={"epochs": 5})})
    assert other.id != trial.id


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("contrastive+mochi", "mochi"),
        ("contrastive[margin=0.3]+mochi[hardest=32]", "mochi"),
        ("contrastive+i_mix[at=embedding]", "i_mix"),
        ("contrastive+xbm[size=1234567]", "xbm"),
        ("contrastive+xbm[size=100]+input[weight=0.1]@2x", "xbm+input"),
    ],
)
def test_an_arm_with_a_rival_is_written_as_it_is_read(make_trial, text, level):
    arm = Arm.parse(text)
    assert (arm.label, arm.at, arm.baseline) == (text, level, text.partition("+")[0])
    trial = make_trial(text)
    assert Trial.model_validate_json(trial.model_dump_json()) == trial
    assert f"+{level}-s0-" in trial.id
    assert trial.id != make_trial(text.partition("+")[0]).id


def test_a_rival_has_all_its_options_so_that_the_digest_covers_them(make_trial):
    rival = Arm.parse("contrastive+mochi[towards=0]").rival
    assert rival is not None
    assert rival.options == {"hardest": 16, "between": 16, "towards": 0}
    assert make_trial("contrastive+mochi[hardest=16]").id == make_trial("contrastive+mochi").id


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("contrastive+mochy", "no level named 'mochy'; did you mean 'mochi'?"),
        ("contrastive+mochi[hardst=3]", "no option of mochi named 'hardst'; did you mean 'hardest' or 'towards'?"),
        ("contrastive+mochi+embedding", "one level at a time; only xbm may stand before a level of Metrix"),
        ("contrastive+embedding+xbm", "one level at a time; only xbm may stand before a level of Metrix"),
        ("contrastive+xbm+mochi", "one level at a time; only xbm may stand before a level of Metrix"),
        ("contrastive+embedding+input", "one level at a time; only xbm may stand before a level of Metrix"),
        ("features+mochi", "features is a floor and takes no options and no level"),
    ],
)
def test_levels_that_an_arm_cannot_have_are_refused(text, problem):
    with pytest.raises(UserError, match=re.escape(problem)):
        Arm.parse(text)


def test_a_decoder_is_a_factor_of_the_classical_path_and_older_trials_keep_their_ids(make_trial):
    classical = Images(side_px=32, crop_scale=(0.6, 1.0), path="classical")
    pillow, gpu = (
        make_trial().model_copy(update={"images": images})
        for images in (classical, classical.model_copy(update={"decoder": "torchvision-gpu"}))
    )
    assert "decoder" not in pillow.images._json
    assert pillow.id != gpu.id
    assert {k: v for k, v in gpu.shared.items() if pillow.shared[k] != v} == {"images.decoder": "torchvision-gpu"}
    with pytest.raises(ValidationError, match="decoder torchvision-gpu is for path classical"):
        Images(decoder="torchvision-gpu")
    with pytest.raises(ValidationError, match="decoder"):
        Images.model_validate({"path": "classical", "decoder": "turbo"})


def test_a_copy_with_other_content_has_another_digest(make_trial):
    """Values cache their JSON, and pydantic copies what is cached."""
    trial = make_trial()
    before = trial.id
    longer = trial.training.model_copy(update={"epochs": 5})
    assert trial.model_copy(update={"training": longer}).id != before
    assert trial.model_copy(update={"training": longer.model_copy(update={"epochs": 2})}).id == before
    assert (trial, hash(trial.training)) == (make_trial(), hash(make_trial().training))
    assert Trial.model_validate(trial.model_dump()) == trial == pickle.loads(pickle.dumps(trial))
    assert trial.without_seed == make_trial(seed=1).without_seed != make_trial("triplet").without_seed


def test_a_trial_without_folds_has_the_id_it_had_before_there_were_folds(make_trial):
    trial = make_trial("contrastive+input")
    assert trial.id == "glyphs-test_resnet-contrastive+input-s0-7e41e473"
    assert trial.digest == "7e41e47343ffa9a983bca2031b24a03ad7f97b79e1c1407fc2592dceee65dfae"
    assert not {"fold", "folds"} & trial.shared.keys()
    assert (trial.each_fold(), trial.whole) == ([trial], trial)


IDS = {
    "quick": "glyphs-test_resnet-untrained-s0-7ffd9207",
    "omniglot": "omniglot-test_vit-proxy_anchor+input-s2-bd9f5d79",
    "paper-cub": "cub200-resnet50.tv_in1k-proxy_anchor+input-s2-f3ab4ec9",
}


@pytest.mark.parametrize("grid", IDS)
def test_trials_have_the_ids_they_had_before_backbones_could_be_frozen(grid):
    assert IDS[grid] in [trial.id for trial in Grid.load(grid).trials()]


def test_a_record_from_before_backbones_could_be_frozen_is_of_the_same_trial(make_trial):
    trial = make_trial("contrastive+feature")
    content = trial.model_dump(mode="json")
    del content["model"]["backbone"], content["model"]["hidden"], content["images"]["views"]
    before = Trial.model_validate_json(json.dumps(content))
    assert (before, before.id) == (trial, trial.id)
    assert before.without_seed == trial.without_seed
    assert before.shared == trial.shared


def test_each_new_setting_makes_another_trial(make_trial):
    trial = make_trial()
    model, images = trial.model, trial.images
    others = [
        trial.model_copy(update={"model": model.model_copy(update={"hidden": 8})}),
        trial.model_copy(update={"model": model.model_copy(update={"backbone": "frozen"})}),
        trial.model_copy(update={"images": images.model_copy(update={"views": 2})}),
    ]
    assert len({each.id for each in (trial, *others)}) == 4
    assert all(each.shared != trial.shared for each in others)


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


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("triplet+", ["expected loss, loss+level or loss[key=value]+level[key=value]"]),
        ("triplet[margin=1,margin=2]", ["margin is given twice"]),
        ("triplet[margin]+input[weight]", [f"{key!r} is not of the form key=value" for key in ("margin", "weight")]),
        ("triplet[margin=.inf]", ["margin is inf; a number must be finite"]),
        ("untrained[a=1]", ["untrained is a floor and takes no options and no level"]),
    ],
)
def test_an_arm_that_is_written_wrongly(text, problems):
    with pytest.raises(GridError) as caught:
        Arm.parse(text)
    assert list(caught.value.problems) == problems
