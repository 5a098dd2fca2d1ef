"""What a trial occupies: measured once, as many on a GPU as fit, never more than its processors allow."""

import pytest

from harness.config import Arm, Resources
from harness.launch.packing import bundles, measure, memory_key, per_gpu, ranks

GB = 2**30


@pytest.mark.parametrize(("peak", "fit"), [(8 * GB, 8), (20 * GB, 3), (70 * GB, 1), (200 * GB, 1)])
def test_as_many_trials_as_fit_with_headroom(peak, fit):
    assert per_gpu(peak, 80 * GB) == fit  # 0.95 · 80 ÷ (1.15 · peak), rounded down


def test_which_settings_determine_memory(make_trial):
    plain = memory_key(make_trial())
    assert memory_key(make_trial(seed=3, lr=1.0, epochs=9)) == plain
    others = [
        make_trial(batch_size=40),
        make_trial(compile="network"),
        make_trial(backbone="resnet18"),
        make_trial(dataset="sop"),
    ]
    others += map(make_trial, ("contrastive+input", "soft_triple", "untrained", "pixels"))
    assert len({plain, *map(memory_key, others)}) == 9
    weight = make_trial().model_copy(update={"arm": Arm.parse("contrastive+input[weight=0.1]")})
    assert memory_key(weight) == memory_key(make_trial("contrastive+input"))


def test_trials_share_gpus_by_memory_and_processors(make_trial):
    small, large, unknown = make_trial(), make_trial(batch_size=40), make_trial(batch_size=60)
    peaks = {memory_key(small): 8 * GB, memory_key(large): 30 * GB}

    def shares(cpus_per_gpu, **wants):
        found = bundles([small, large, unknown], Resources(**wants), 2, cpus_per_gpu, peaks, 80 * GB)
        return [found[trial.id].get("GPU") for trial in (small, large, unknown)]

    assert shares(16) == [0.125, 0.5, 1.0]
    assert shares(4) == [0.25, 0.5, 1.0]  # four processors: no more than four trials
    assert shares(16, cpus_per_trial=8) == [0.5, 0.5, 1.0]
    assert shares(16, gpus_per_trial=0.25) == [0.25] * 3
    assert shares(1, gpus_per_trial=2) == [2.0] * 3


def test_three_on_a_gpu_are_three(make_trial):
    trial = make_trial()
    found = bundles([trial], Resources(), 1, 16, {memory_key(trial): 25 * GB}, 100 * GB)[trial.id]
    assert 3 * found["GPU"] <= 1 < 4 * found["GPU"]


def test_threads_are_processors_and_without_a_gpu_there_is_no_share(make_trial):
    trial = make_trial(threads=3)
    assert bundles([trial], Resources(), 0, 0)[trial.id] == {"CPU": 3.0}
    assert ranks({"CPU": 3.0}) == ranks({"CPU": 1.0, "GPU": 0.5}) == 1
    assert ranks({"CPU": 1.0, "GPU": 4.0}) == 4
    wide = bundles([trial], Resources(gpus_per_trial=2), 2, 16)[trial.id]
    assert wide == {"CPU": 6.0, "GPU": 2.0}


@pytest.mark.parametrize("arm", ["contrastive", "proxy_anchor+feature", "untrained", "pixels"])
def test_a_trial_can_be_measured(make_trial, arm):
    assert measure(make_trial(arm, examples_per_class=5), 30, "cpu") > 100e6  # the process with its libraries
