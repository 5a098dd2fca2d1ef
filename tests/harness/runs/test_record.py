"""What a record contains."""

import pytest


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
