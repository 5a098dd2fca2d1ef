"""Whole trials on a GPU: against the CPU, against themselves, killed and resumed, and two at a time."""

import time
import warnings

import torch

from harness.config import Trial
from harness.runs.record import Record
from harness.runs.run import Run
from harness.training.bench import Bench
from harness.training.trial import steps
from tests.gpu.bench import one_batch
from tests.gpu.child import next_message, started
from tests.gpu.place import Place, losses_of

TOLERANCE = 0.03  # of R@1, by which rounding alone may move a trial this small


def test_a_trial_is_that_of_the_cpu_within_noise(place: Place) -> None:
    """Without random crops, which a GPU draws from numbers of its own, only rounding tells the two apart."""
    still = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False}
    here, other = (place.run(place.small(seed=seed, **still), "on-cpu", "cpu") for seed in (0, 1))
    there = place.run(place.small(**still), "on-device")
    noise = abs(here.test["R@1"] - other.test["R@1"])
    first, mine = losses_of(here)[0], losses_of(there)[0]
    place.note("R@1 of one trial, device − CPU", there.test["R@1"] - here.test["R@1"], "")
    place.note("R@1 of the trial on the CPU, seed 0 − seed 1", here.test["R@1"] - other.test["R@1"], "")
    place.note("loss of its first epoch, device ÷ CPU", mine / first, "")
    assert abs(mine / first - 1) < 0.02
    assert abs(there.test["R@1"] - here.test["R@1"]) <= TOLERANCE + noise
    assert there.provenance["device"] != here.provenance["device"] or place.stand_in


def test_a_trial_run_twice_has_equal_scores(place: Place) -> None:
    """Say whether the same trial gives the same bits twice, and what differs where it does not."""
    trial = place.small("contrastive+feature[stage=layer3]")
    once, again = (place.run(trial, name) for name in ("once", "again"))
    place.note("the same trial twice", differences(once, again), "")
    place.note("operations without a deterministic form in its step", ", ".join(undetermined(place, trial)) or "none")
    assert abs(losses_of(once)[0] / losses_of(again)[0] - 1) < 0.02
    assert abs(once.test["R@1"] - again.test["R@1"]) <= TOLERANCE


def test_a_trial_that_is_killed_goes_on(place: Place) -> None:
    """Kill a process in its second epoch: another continues after the first and ends as one in peace does."""
    trial = place.small("multi_similarity+input", epochs=6)
    peace = place.run(trial, "in-peace")
    sources = place.sources("killed")
    arguments = (trial.model_dump_json(), sources.out, sources.data, sources.cache, place.device, 1)
    with started("trial", *arguments) as child:
        while next_message(child)["epochs"] < 1:
            continue
        time.sleep(0.2 * peace.cost.train_s / trial.training.epochs)
        child.kill()
        assert child.wait() == -9
    run = Run(sources.out)
    assert run.record(trial) is None, "it was killed too late"
    going_on = steps(trial, sources)
    assert next(going_on).steps >= peace.cost.steps // trial.training.epochs, "it began anew"
    for _ in going_on:
        continue
    resumed = run.record(trial)
    place.note("a trial killed in its second epoch, against one in peace", differences(peace, resumed), "")
    assert resumed.cost.steps == peace.cost.steps
    assert len(losses_of(resumed)) == len(losses_of(peace))
    assert abs(losses_of(resumed)[-1] / losses_of(peace)[-1] - 1) < 0.05
    assert abs(resumed.test["R@1"] - peace.test["R@1"]) <= TOLERANCE


def test_two_trials_share_the_device(place: Place) -> None:
    """Two processes train on it at once, each ends as it would alone, and the seconds of both are noted."""
    first, second = (place.small("contrastive+embedding", seed=seed) for seed in (0, 1))
    alone = place.run(first, "alone")
    sources = place.sources("shared", gpu_share=0.5)
    arguments = (second.model_dump_json(), sources.out, sources.data, sources.cache, place.device, 0.5)
    with started("trial", *arguments) as child:
        next_message(child)  # it trains
        shared = place.run(first, "shared", gpu_share=0.5)
        child.communicate()
        assert child.returncode == 0
    beside = Run(sources.out).record(second)
    for name, record in (("alone", alone), ("shared", shared), ("the other", beside)):
        place.note(f"training of a small trial, {name}", record.cost.train_s, "s")
    assert (shared.provenance["gpu_share"], beside.provenance["gpu_share"]) == (0.5, 0.5)
    assert abs(shared.test["R@1"] - alone.test["R@1"]) <= TOLERANCE


def differences(one: Record, two: Record) -> str:
    """In words, what tells two records of one trial apart."""
    if one.provenance["tested_weights"] == two.provenance["tested_weights"] and losses_of(one) == losses_of(two):
        return "equal to the bit: losses, tested weights and scores"
    pairs = list(zip(losses_of(one), losses_of(two), strict=False))
    parted = next((epoch for epoch, (a, b) in enumerate(pairs, 1) if a != b), None)
    losses = max((abs(a - b) / abs(a) for a, b in pairs), default=0.0)
    scores = max(abs(one.test[name] - two.test[name]) for name in one.test)
    since = f"losses from epoch {parted} on, by {losses:.1e} at most" if parted else "no mean loss of an epoch"
    return f"differ: {since}; tested weights; scores by {100 * scores:.2f} points at most"


def undetermined(place: Place, trial: Trial) -> list[str]:
    """What torch warns of in one step when it is asked for deterministic operations."""
    bench = Bench.of(trial, place.sources("undetermined"))
    criterion, (images, labels) = bench.criterion(), one_batch(bench)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            criterion.objective(bench.model, images, labels).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    texts = (str(warning.message) for warning in caught)
    return sorted({text.partition(".")[0][:80] for text in texts if "determinis" in text.lower()})
