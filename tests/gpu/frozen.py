"""Measure how fast the features of a frozen backbone are computed, and what a trial on them takes."""

from unittest import SkipTest

from harness.config import Model
from harness.training.pictures import open_dataset
from tests.gpu.place import Place
from tests.performance._features import FEATURE_BATCH, rates, weights

TRIALS = 3  # timed, after one that warms up


def frozen(place: Place) -> None:
    """Measure images a second of features and of the bare network, and the seconds of a trial on the features."""
    name = place.sizes.networks[2]
    file = place.weights if place.weights and place.weights.stem == name else weights(name, place.scratch)
    trial = place.large(name, "proxy_anchor", epochs=10)
    backbone = trial.backbone.model_copy(update={"pretrained": str(file)})
    model = Model(dim=place.sizes.dim, backbone="frozen")
    trial = trial.model_copy(update={"backbone": backbone, "model": model})

    dataset, sources = open_dataset(trial.dataset, place.few, place.cache), place.sources("frozen")
    if len(dataset) < 2 * FEATURE_BATCH:
        raise SkipTest(f"needs {2 * FEATURE_BATCH} pictures, and there are {len(dataset)}")
    batches, bare = rates(trial, dataset, sources)
    at = f"{name}, {place.sizes.side_px} px, float32"
    place.measured(f"{at}, bare: forward", "images/s", [FEATURE_BATCH / s for s in bare])
    place.measured(f"{at}, features written to a file", "images/s", [FEATURE_BATCH / s for s in batches])

    records = [place.run(trial.model_copy(update={"seed": seed}), "frozen") for seed in range(1 + TRIALS)]
    costs = [record.cost for record in records[1:]]
    on = f"a trial on features of {name}, {costs[0].steps} steps of {place.sizes.batch}"
    place.measured(on, "s", [cost.wall_s for cost in costs])
    place.measured(f"{on}: training steps", "of the time", [cost.train_s / cost.wall_s for cost in costs])
