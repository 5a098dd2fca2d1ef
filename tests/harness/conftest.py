"""A trial and its record, as small as they can be."""

import pytest

from harness.config import Arm, Backbone, Choice, Images, Model, Training, Trial
from harness.runs.record import Cost, Data, Epoch, Record


@pytest.fixture
def make_trial():
    def make(arm="contrastive", seed=0, dataset="glyphs", backbone="test_resnet", dim=16, **training):
        return Trial(
            dataset=Choice(name=dataset),
            backbone=Backbone(name=backbone),
            model=Model(dim=dim),
            images=Images(side_px=32, crop_scale=(0.6, 1.0)),
            training=Training(**{"epochs": 2, "batch_size": 20, "lr": 1e-3, "schedule": "constant", **training}),
            arm=Arm.parse(arm),
            seed=seed,
        )

    return make


@pytest.fixture
def make_record():
    def make(trial, score=0.5, **changes):
        curve = tuple(
            Epoch(
                epoch=e, loss=1 / e, lr=1e-3, validation={"R@1": 0.1, "MAP@R": 0.1 * e}, train_s=1.0, validation_s=0.1
            )
            for e in (1, 2)
        )
        scores = {"R@1": score, "R@2": score, "MAP@R": score / 2, "R-Precision": score / 2}
        content = {
            "id": trial.id,
            "trial": trial,
            "arm": trial.arm.label,
            "level": trial.arm.at,
            "baseline": trial.arm.baseline,
            "grid": {"name": "small", "version": 1},
            "protocol": {"name": "fair", "version": 1},
            "selected_epoch": 2,
            "validation": curve[-1].validation,
            "test": scores,
            "curve": curve,
            "cost": Cost(train_s=2.0, wall_s=3.0, images_per_s=100.0, forward_passes_per_step=1.0),
            "data": Data(
                index_fingerprint="f" * 64,
                split_fingerprint="e" * 64,
                images={"train": 8, "validation": 4, "test": 8},
                classes={"train": 4, "validation": 2, "test": 4},
                test_queries=8,
                test_excluded=0,
            ),
            "provenance": {"revision": "0" * 40},
            "finished": "2026-01-01T00:00:00Z",
        }
        return Record(**{**content, **changes})

    return make


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory):
    """Return a function that returns a file of weights of a small network, the same for the same name and seed."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")

    def weights_of(name="test_resnet", seed=0):
        path = folder / f"{name}-{seed}.safetensors"
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                state = timm.create_model(name).state_dict()
            save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
        return str(path)

    return weights_of


@pytest.fixture
def frozen(make_trial, weights_of):
    """Return a function that makes a trial of a folder of images with a frozen backbone."""

    def frozen(arm="contrastive", seed=0, network="test_resnet", images=None, model=None, **training):
        trial = make_trial(arm, seed, **{"epochs": 3, "examples_per_class": 2, "batch_size": 8, **training})
        changes = {
            "dataset": Choice(name="folder"),
            "backbone": Backbone(name=network, pretrained=weights_of(network)),
            "model": Model(**{"backbone": "frozen", "dim": 16, **(model or {})}),
            "images": Images(**{"side_px": 64, **(images or {})}),
            "keep": "weights",
        }
        return trial.model_copy(update=changes)

    return frozen
