"""Losses of pytorch-metric-learning as arms."""

import pytest
import torch

from harness.config import Arm
from harness.launch import plan
from harness.training import pml
from harness.training.trial import run_trial

losses = pytest.importorskip("pytorch_metric_learning.losses")


def test_a_library_loss_equals_the_library():
    z, labels = torch.randn(12, 8), torch.arange(12) % 4
    mine = pml.create("pml:TripletMarginLoss", num_classes=4, dim=8, margin=0.2)
    assert mine(z, labels) == losses.TripletMarginLoss(margin=0.2)(z, labels)


def test_class_vectors_come_from_the_generator_and_affect_no_other_stream():
    before = torch.random.get_rng_state()
    one, two = (
        pml.create("pml:ProxyAnchorLoss", num_classes=4, dim=8, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(one.loss.get_parameter("proxies"), two.loss.get_parameter("proxies"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert [group["lr"] for group in one.parameter_groups(0.1)] == [10.0]
    assert pml.create("pml:MarginLoss", num_classes=4, dim=8, learn_beta=True).parameter_groups(0.1)[0]["lr"] == 0.1


def test_an_arm_of_a_library_loss(make_trial):
    arm = Arm.parse("pml:MarginLoss[margin=0.3]")
    assert (arm.label, arm.options["nu"]) == ("pml:MarginLoss[margin=0.3]", 0)
    assert "no label weights to mix" in (plan.no_form_reason(make_trial("pml:MarginLoss+embedding")) or "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pml:MargniLoss", "did you mean 'pml:MarginLoss'"),
        ("pml:MarginLoss[margn=1]", "did you mean 'margin'"),
        ("pml:RankedListLoss", "needs margin and Tn"),
    ],
)
def test_wrong_names(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        Arm.parse(text)


def test_a_trial_with_a_library_loss(make_trial, tmp_path):
    trial = make_trial("pml:ProxyAnchorLoss")
    dataset = trial.dataset.model_copy(update={"options": {"classes": 16}})
    record = run_trial(trial.model_copy(update={"dataset": dataset}), tmp_path)
    assert record.arm == "pml:ProxyAnchorLoss"
    first, second = (epoch.loss for epoch in record.curve[1:3])
    assert first is not None
    assert second is not None
    assert second < first
