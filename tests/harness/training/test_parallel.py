"""Two processes that share every batch compute the same as one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import baselines
import metrix
from harness.config import Choice
from harness.data.images import Originals
from harness.data.loading import Augmentation
from harness.training import parallel
from harness.training.chunked import Chunked
from harness.training.embedder import Embedder
from harness.training.parallel import Parallel
from harness.training.pictures import open_dataset
from harness.training.pipeline import Pipeline
from harness.training.ranks import Ranks
from metrix import rivals

CPU = torch.device("cpu")
ROWS, STEPS = 11, 10
ARMS: dict[str, dict[str, Any] | None] = {
    "contrastive": None,
    "proxy_anchor": None,
    "proxy_anchor, embedding": {"at": "embedding"},
    "contrastive, last map": {"at": "feature"},
    "contrastive, layer3": {"at": "feature", "stage": "layer3"},
    "contrastive, input": {"at": "input"},
}
CASES: list[tuple[str, str, int | None]] = [(norm, arm, None) for norm in ("frozen", "train") for arm in ARMS]
CASES.append(("frozen", "contrastive, layer3", 4))
ARMS["contrastive, few"] = {"at": "input", "max_mixed": 1}  # the second rank has no mixed row
CASES.append(("frozen", "contrastive, few", None))
RIVALS: dict[str, dict[str, Any]] = {
    "contrastive, xbm": {"size": 25, "warmup_steps": 2},
    "contrastive, mochi": {"hardest": 3},
    "contrastive, i_mix": {"at": "input"},
    "proxy_anchor, proxy_synthesis": {},
    "norm_softmax, memvir": {"num_steps": 2, "gap": 1, "warmup_steps": 2},
}
CASES += [("frozen", arm, None) for arm in RIVALS]


def trained(norm, arm, rows, ranks=1):
    """Losses of ten steps, and gradients, weights, proxies and statistics after them, float64."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Embedder("test_resnet", dim=8, norm=norm, pretrained=False, side_px=32, generator=0).double()
    loss = baselines.create(arm.partition(",")[0], num_classes=4, dim=8, generator=generator).double()
    level, criterion = ARMS.get(arm), loss
    if level is not None:
        criterion = metrix.Metrix(loss, **level, generator=generator)
    if arm in RIVALS:
        criterion = rivals.create(arm.partition(", ")[2], loss, generator=generator, **RIVALS[arm])
    network, backward = model if rows is None else Chunked(model, rows), torch.Tensor.backward
    if ranks > 1:
        network = Parallel(network)
        backward = parallel.backward(network, criterion)
    network.train()
    learnt = [*network.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(learnt, 0.01, momentum=0.9)
    losses, images = [], torch.empty(0)
    for _ in range(STEPS):
        images = torch.rand(ROWS, 3, 32, 32, dtype=torch.float64, generator=generator)
        total = criterion.objective(network, images, torch.arange(ROWS) % 4)
        optimizer.zero_grad()
        backward(total)
        optimizer.step()
        losses.append(total.detach())
    network.eval()
    with torch.no_grad():
        embeddings = network(images)
    state = network.state_dict()
    assert state.keys() == model.state_dict().keys()
    return [
        torch.stack(losses),
        embeddings,
        *(p.grad for p in learnt if p.grad is not None),
        *learnt,
        *criterion.buffers(),
        *state.values(),
    ]


class Plain(nn.Module):
    """Normalisations that are asked for in other ways, in a network that is no Embedder."""

    def __init__(self):
        super().__init__()
        from timm.layers.norm_act import BatchNormAct2d

        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.BatchNorm2d(4, affine=False, momentum=None), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Linear(4 * 36, 5), nn.BatchNorm1d(5, track_running_stats=False))

    def forward(self, images):
        return self.head(self.body(images))


def plain(ranks=1):
    torch.manual_seed(0)
    network: Any = Plain().double()
    backward = torch.Tensor.backward
    if ranks > 1:
        network = Parallel(network)
        backward = parallel.backward(network, nn.Identity())
    images = torch.rand(ROWS, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    out = images
    for _ in range(2):
        network.zero_grad()
        out = network(images)
        backward(out.sigmoid().square().sum())
    later = network.eval()(images)
    return [out, later, images.grad, *(p.grad for p in network.parameters()), *network.state_dict().values()]


def masks():
    """What dropout keeps in a batch of two ranks, and a draw after it."""
    torch.manual_seed(5)
    dropout: Any = nn.Dropout(0.5)
    network = Parallel(dropout).train()
    return [network(torch.ones(ROWS, 20)), network(torch.ones(ROWS, 20)), torch.rand(3)]


def files():
    """A batch of the classical path, of which each rank reads a part."""
    images = Originals(open_dataset(Choice(name="glyphs", options={"classes": 16})))
    augmentation = parallel.Divided(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def read(which, each):
        return augmentation.load(images.batch(which), torch.Generator().manual_seed(len(which)), each)

    def finish(batch):
        return augmentation.train(batch, torch.Generator())

    return [
        augmentation.train(images.batch(torch.arange(7)), torch.Generator().manual_seed(0)),
        augmentation.evaluate(images.batch(np.array([3, 4, 5]))),
        *Pipeline(2, 2).run(read, finish, [np.arange(count) for count in range(2, 9)], CPU),
    ]


def both_ranks(rank: int = 0, folder: Path = Path()) -> Any:
    """Everything that two ranks compute here; rank 1 leaves what it has in a file."""
    torch.set_num_threads(1)
    computed = {str(case): trained(*case, ranks=2) for case in CASES}
    computed |= {"plain": plain(ranks=2), "masks": masks(), "files": files()}
    if rank:
        torch.save(computed, folder / "rank 1")
    return computed


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with Ranks(2, CPU, both_ranks, folder) as ranks:
        ranks.join()
        zero = both_ranks()
    return zero, torch.load(folder / "rank 1")


def same(some, others, tolerance=0.0):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ten_steps_of_two_ranks_are_those_of_one(case, computed):
    zero, one = computed
    same(zero[str(case)], one[str(case)])  # to the bit: weights, proxies, statistics
    same(zero[str(case)], trained(*case), 1e-9)


def test_every_kind_of_batch_norm_sees_all_rows(computed):
    zero, one = computed
    same(zero["plain"][:3], one["plain"][:3])
    same(zero["plain"], plain(), 1e-12)


def test_ranks_draw_their_own_masks_and_nothing_else(computed):
    (zero, again, after), (_, _, after_one) = (found["masks"] for found in computed)
    torch.manual_seed(5)
    assert torch.equal(zero[:6], nn.Dropout(0.5)(torch.ones(6, 20)))
    assert not torch.equal(zero[:5], zero[6:])
    assert not torch.equal(zero, again)
    assert torch.equal(after, after_one)


def test_files_are_read_once_by_all_ranks_together(computed):
    images = Originals(open_dataset(Choice(name="glyphs", options={"classes": 16})))
    alone = Augmentation(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    generator = torch.Generator().manual_seed(0)
    expected = [
        alone.train(images.batch(torch.arange(7)), generator),
        alone.evaluate(images.batch(np.array([3, 4, 5]))),
        *(alone.train(images.batch(np.arange(n)), torch.Generator().manual_seed(n)) for n in range(2, 9)),
    ]
    for found in computed:
        same(found["files"], expected)
