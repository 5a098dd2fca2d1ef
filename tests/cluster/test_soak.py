"""The soak in short: what dies most often, on a grid of a dozen trials."""

from tests.cluster.soak import soak


def test_a_dozen_trials_while_workers_nodes_and_drivers_die(tmp_path):
    counts, wrong = soak(
        tmp_path, trials=12, seed=4, every_s=6, seconds=60, compared=2, kinds=("worker", "node", "driver"), least=3
    )
    assert wrong == [], counts
