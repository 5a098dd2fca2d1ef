"""The training loop waits for its device once in fifty steps."""

import torch
from torch import Tensor

from harness.training import loop
from harness.training.criterion import build_criterion
from tests.metrix.test_levels import Network
from tests.waits import DEVICE, counted

STEPS, ROWS = 51, 8


class _Network(Network):
    def freeze_backbone(self, frozen: bool) -> None:
        assert not frozen


class _Images:
    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        rows = torch.randn(len(indices), 3, 8, 8, generator=torch.Generator().manual_seed(int(indices[0])))
        return rows.to(device, non_blocking=True)


class _Unchanged:
    def load(self, batch: Tensor, generator: object, each: object) -> Tensor:
        return batch

    def train(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return batch

    def evaluate(self, batch: Tensor) -> Tensor:
        return batch


def epochs(trial, network, criterion, folder, device):
    """Train on random images of four classes; yield the loss of each epoch."""
    labels = torch.arange(ROWS * STEPS) % 4
    for progress in loop.train(
        trial,
        network,
        criterion,
        _Images(),
        torch.arange(len(labels)),
        labels,
        _Unchanged(),
        lambda: ({}, {}),
        len,
        folder,
        device,
        save=lambda *_: None,
    ):
        yield progress.curve[-1].loss


def test_an_epoch_waits_for_its_checks_and_its_mean_loss(make_trial, tmp_path, monkeypatch):
    def plain(*groups, **options):
        return torch.optim.AdamW(*groups, **options | {"fused": False, "foreach": False})

    monkeypatch.setitem(loop.OPTIMIZERS, "adamw", plain)  # the fused one knows no stand-in
    trial = make_trial("proxy_anchor+embedding", dim=4, epochs=1, batch_size=ROWS, sampler="shuffle", clip_value=1.0)
    losses = {}
    for device in (torch.device("cpu"), DEVICE):
        torch.manual_seed(0)
        with counted() as waits:
            network, criterion = _Network(dropout=0.0).to(device), build_criterion(trial, 4).to(device)
            waits.clear()
            losses[device] = list(epochs(trial, network, criterion, tmp_path / device.type, device))
    assert losses[DEVICE] == losses[torch.device("cpu")]
    assert sum(waits.values()) == 3, dict(waits)  # the checks after steps 50 and 51, and the mean loss of the epoch
