"""What a record contains."""

import pytest

from harness.grid import Grid
from harness.runs.record import Requested


@pytest.mark.parametrize(
    ("test", "named"),
    [
        ({"R@1": 0.5, "R@10": 0.75, "MAP@R": 0.25}, ("R@1", 0.5)),
        ({"R@10": 0.75, "R@2": 0.5, "MAP@R": 0.25}, ("R@2", 0.5)),
        ({"MAP@R": 0.25}, ("MAP@R", 0.25)),
        ({}, ("validation MAP@R", 0.125)),
    ],
)
def test_the_headline_of_a_record_is_a_score_that_it_has(make_trial, make_record, test, named):
    assert make_record(make_trial(), test=test, validation={"R@2": 0.5, "MAP@R": 0.125}).headline == named


def test_what_was_refused_is_known_with_the_settings_of_its_grid():
    grid = Grid.load("quick", ["losses=[contrastive,arcface]", "levels=[baseline,embedding]", "epochs=7"])
    place = ("glyphs", "test_resnet")
    refused = ((*place, "arcface+embedding", "no form"), (*place, "contrastive+feature[stage=layer3]", "not listed"))
    found = Requested(grids=(grid,), refused=refused).without_form
    assert [(*trial.cell, reason) for trial, reason in found] == list(refused)
    assert {trial.training.epochs for trial, _ in found} == {7}
