"""FAIR-06, 09, 10: equal budgets, spaces that do not change, optima inside them."""

import pytest

from harness.fairness import rules

SPACE = {
    "loss.beta": {"low": 1.0, "high": 80.0, "log": True},
    "loss.margin": {"low": 0.0, "high": 1.0},
    "loss.kind": {"choices": ["all", "hard"]},
}
INSIDE = {"loss.beta": 18.0, "loss.margin": 0.5, "loss.kind": "hard"}


def study(arm="contrastive", **changes):
    given = {"trials": 8, "made": 8, "declared": SPACE, "space": SPACE, "tried": (INSIDE,) * 8, "chosen": INSIDE}
    return rules.Study("glyphs/test_resnet", arm, **{**given, **changes})


def sentences(*studies):
    return [(f.severity, f.sentence) for f in rules.over_studies(studies)]


def test_equal_searches_pass():
    assert sentences(study(), study("contrastive+embedding")) == []
    assert sentences(study(trials=8, made=3, chosen=None)) == [], "a search under way"


def test_unequal_budgets():
    elsewhere = rules.Study("omniglot/test_resnet", "contrastive", 5, 5, SPACE, SPACE)
    assert sentences(study(), study("contrastive+embedding", trials=20, made=20), elsewhere) == [
        ("E", "FAIR-06 glyphs/test_resnet: contrastive: 8 trials, contrastive+embedding: 20.")
    ]
    assert sentences(study(made=5)) == [
        ("E", "FAIR-06 glyphs/test_resnet/contrastive: settings chosen after 5 of 8 trials.")
    ]


def test_a_space_that_changed_or_was_never_declared():
    wider = {**SPACE, "loss.beta": {"low": 1.0, "high": 200.0, "log": True}}
    assert sentences(study(space=wider)) == [
        (
            "E",
            "FAIR-09 glyphs/test_resnet/contrastive: the space of loss.beta was [1, 80] in logarithm and is now "
            "[1, 200] in logarithm.",
        )
    ]
    assert sentences(study(declared={})) == [
        ("E", "FAIR-09 glyphs/test_resnet/contrastive: no search space was declared.")
    ]


def test_a_trial_outside_the_space():
    outside = {**INSIDE, "loss.beta": 120.0}
    assert sentences(study(tried=(outside, INSIDE), defaults=outside)) == [], "defaults may lie anywhere"
    head = "FAIR-09 glyphs/test_resnet/contrastive"
    assert sentences(study(tried=(INSIDE, {**INSIDE, "loss.kind": "soft"}, outside))) == [
        ("E", f"{head}: loss.beta = 120 was tried, outside its space [1, 80] in logarithm."),
        ("E", f"{head}: loss.kind = soft was tried, outside its space {{all, hard}}."),
    ]


def test_final_trials_with_other_settings_than_those_chosen():
    assert sentences(study(used=(INSIDE, INSIDE))) == []
    assert sentences(study(used=(INSIDE, {**INSIDE, "loss.beta": 20.0}))) == [
        ("E", "FAIR-09 glyphs/test_resnet/contrastive: loss.beta = 20 was used, but the search chose 18.")
    ]


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("loss.beta", 79.6, "at the upper bound 80"),
        ("loss.beta", 1.04, "at the lower bound 1"),  # ln 1.04 / ln 80 = 0.009
        ("loss.margin", 0.009, "at the lower bound 0"),
        ("loss.beta", 70.0, None),  # ln 80 − ln 70 is 3 % of the range
        ("loss.margin", 0.02, None),
    ],
)
def test_an_optimum_at_the_border(name, value, where):
    found = sentences(study(chosen={**INSIDE, name: value}))
    expected = [("W", f"FAIR-10 glyphs/test_resnet/contrastive: {name} = {value} {where}.")] if where else []
    assert found == expected


@pytest.mark.parametrize(
    ("choices", "value", "where"),
    [
        ([2, 5, 10], 10, "at the upper bound 10"),
        ([2, 5, 10], 2, "at the lower bound 2"),
        ([2, 5, 10], 5, None),
        ([2, 10], 10, None),  # of two, one is always at a border
        ([True, False, True], True, None),
        (["all", "semihard", "hard"], "hard", None),
    ],
)
def test_an_optimum_at_the_border_of_choices(choices, value, where):
    declared = {"loss.centres": {"choices": choices}}
    chosen = {"loss.centres": value}
    found = sentences(study(declared=declared, space=declared, tried=(chosen,) * 8, chosen=chosen))
    expected = [("W", f"FAIR-10 glyphs/test_resnet/contrastive: loss.centres = {value} {where}.")] if where else []
    assert found == expected
