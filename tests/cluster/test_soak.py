"""A short soak test: the most frequent faults, on a grid of four trials."""

from tests.cluster.soak import soak


def test_four_trials_while_workers_nodes_and_drivers_die(tmp_path):
    kinds = ("worker", "node", "driver")
    counts, problems = soak(tmp_path, trials=4, seed=4, every_s=5, seconds=45, compared=1, kinds=kinds, in_turn=True)
    assert problems == [], (counts, (tmp_path / "driver.txt").read_text()[-6000:])
    assert set(counts) == set(kinds)
