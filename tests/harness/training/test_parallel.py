"""Two processes that share every batch compute what one does, and neither is left behind when the other ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import baselines
import metrix
from harness.config import Choice, Model
from harness.data.images import Originals
from harness.data.loading import Augmentation
from harness.runs.run import Run
from harness.training import checkpoint, parallel
from harness.training.chunked import Chunked
from harness.training.models import Embedder
from harness.training.parallel import DeviceError, Parallel, RankFailed, Ranks
from harness.training.trial import Sources, open_dataset, run_trial, steps

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
ROWS, STEPS = 11, 10
ARMS = {
    "contrastive": None,
    "proxy_anchor": None,
    "proxy_anchor, embedding": {"at": "embedding"},
    "contrastive, last map": {"at": "feature"},
    "contrastive, layer3": {"at": "feature", "stage": "layer3"},
    "contrastive, input": {"at": "input"},
}
CASES = [(norm, arm, None) for norm in ("frozen", "train") for arm in ARMS]
CASES.append(("frozen", "contrastive, layer3", 4))
ARMS["contrastive, few"] = {"at": "input", "max_mixed": 1}  # the second rank has no mixed row
CASES.append(("frozen", "contrastive, few", None))


def trained(norm, arm, rows, ranks=1):
    """Losses of ten steps, and gradients, weights, proxies and statistics after them, float64."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Embedder("test_resnet", dim=8, norm=norm, pretrained=False, side_px=32, generator=0).double()
    loss = baselines.create(arm.partition(",")[0], num_classes=4, dim=8, generator=generator).double()
    criterion = loss if ARMS[arm] is None else metrix.Metrix(loss, **ARMS[arm], generator=generator)
    network, backward = model if rows is None else Chunked(model, rows), torch.Tensor.backward
    if ranks > 1:
        network = Parallel(network)
        backward = parallel.backward(network, criterion)
    network.train()
    learnt = [*network.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(learnt, 0.01, momentum=0.9)
    losses = []
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
        *state.values(),
    ]


class Plain(nn.Module):
    """Normalisations that are asked for in other ways, in a network that is no Embedder."""

    def __init__(self):
        super().__init__()
        from timm.layers import BatchNormAct2d

        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.BatchNorm2d(4, affine=False, momentum=None), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Linear(4 * 36, 5), nn.BatchNorm1d(5, track_running_stats=False))

    def forward(self, images):
        return self.head(self.body(images))


def plain(ranks=1):
    torch.manual_seed(0)
    network, backward = Plain().double(), torch.Tensor.backward
    if ranks > 1:
        network = Parallel(network)
        backward = parallel.backward(network, nn.Identity())
    images = torch.rand(ROWS, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        network.zero_grad()
        out = network(images)
        backward(out.sigmoid().square().sum())
    later = network.eval()(images)
    return [out, later, images.grad, *(p.grad for p in network.parameters()), *network.state_dict().values()]


def masks():
    """What dropout keeps in a batch of two ranks, and a draw after it."""
    torch.manual_seed(5)
    network = Parallel(nn.Dropout(0.5)).train()
    return [network(torch.ones(ROWS, 20)), network(torch.ones(ROWS, 20)), torch.rand(3)]


def files():
    """A batch of the classical path, of which each rank reads a part."""
    images = Originals(open_dataset(Choice(name="glyphs", options={"classes": 16})))
    augmentation = parallel.Divided(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    generator = torch.Generator().manual_seed(0)
    return [
        augmentation.train(images.batch(torch.arange(7)), generator),
        augmentation.evaluate(images.batch([3, 4, 5])),
    ]


def both_ranks(rank=0, folder=None):
    """Everything that two ranks compute here; rank 1 leaves what it has in a file."""
    torch.set_num_threads(1)
    computed = {str(case): trained(*case, ranks=2) for case in CASES}
    computed.update(plain=plain(ranks=2), masks=masks(), files=files())
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


def test_batch_norm_of_any_kind_sees_all_rows(computed):
    zero, one = computed
    same(zero["plain"][:3], one["plain"][:3])
    same(zero["plain"], plain(), 1e-12)


def test_ranks_draw_masks_of_their_own_and_nothing_else(computed):
    (zero, again, after), (_, _, after_one) = (found["masks"] for found in computed)
    torch.manual_seed(5)
    assert torch.equal(zero[:6], nn.Dropout(0.5)(torch.ones(6, 20)))
    assert not torch.equal(zero[:5], zero[6:])
    assert not torch.equal(zero, again)
    assert torch.equal(after, after_one)


def test_files_are_read_once_by_all_ranks_together(computed):
    images = Originals(open_dataset(Choice(name="glyphs", options={"classes": 16})))
    alone = Augmentation(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    generator = torch.Generator().manual_seed(0)
    expected = [alone.train(images.batch(torch.arange(7)), generator), alone.evaluate(images.batch([3, 4, 5]))]
    for found in computed:
        same(found["files"], expected)


def raises(rank):
    if rank:
        raise KeyError("what rank 1 said")


def runs_out_of_memory(rank):
    raise torch.OutOfMemoryError("of rank 1")


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (raises, RankFailed, "rank 1 of 2: KeyError: 'what rank 1 said'"),
        (runs_out_of_memory, torch.OutOfMemoryError, "rank 1 of 2: OutOfMemoryError: of rank 1"),
    ],
)
def test_the_error_of_a_rank_is_that_of_the_trial(function, error, words):
    def meet():
        with Ranks(2, CPU, function) as ranks:
            ranks.join()
            Parallel(nn.Linear(2, 2))

    with pytest.raises(error, match=words):
        meet()


def test_devices_that_there_are_not(monkeypatch):
    assert parallel.devices(2, "cpu") == [CPU, CPU]
    with pytest.raises(DeviceError, match="ranks = 0; a trial has at least one"):
        parallel.devices(0, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:7", "gpu", "", "meta"):
        with pytest.raises(DeviceError) as caught:
            parallel.present(name)
        assert str(caught.value) == f"no device {name!r} on this machine; there are: cpu (torch sees no GPU)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="device cuda:0 is one GPU; ranks = 2 take device cuda"):
        parallel.devices(2, "cuda:0")
    with pytest.raises(DeviceError, match="ranks = 2, and there are 1 GPUs"):
        parallel.devices(2, "cuda")


@pytest.fixture
def tiny(make_trial):
    def tiny(arm="proxy_anchor+embedding", norm="train", **training):
        trial = make_trial(arm, **{"epochs": 2, "lr": 1e-4, **training})
        glyphs = Choice(name="glyphs", options={"classes": 16})
        return trial.model_copy(update={"dataset": glyphs, "model": Model(dim=16, norm=norm), "keep": "weights"})

    return tiny


def ranks_of(pid):
    """The ranks that a process started; other tests may have left it with other children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child) for child in children if "harness.training.parallel" in Path(f"/proc/{child}/cmdline").read_text()
    ]


def gone(pid, within_s=5.0):
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def waits(rank):
    """Meets rank 0 once, and waits for it to come again."""
    Parallel(nn.Linear(2, 2))
    Parallel(nn.Linear(2, 2))


def sleeps(rank):
    """Meets rank 0 once, and is busy with something else when that comes again."""
    Parallel(nn.Linear(2, 2))
    time.sleep(60)


def test_a_killed_rank_is_noticed():
    def meet():
        with Ranks(2, CPU, sleeps) as ranks:
            ranks.join()
            Parallel(nn.Linear(2, 2))
            os.kill(*ranks_of(os.getpid()), signal.SIGKILL)
            Parallel(nn.Linear(2, 2))

    with pytest.raises(RankFailed, match=r"rank 1 of 2: ended by signal 9 \(SIGKILL\)"):
        meet()
    assert ranks_of(os.getpid()) == []


def aborts(rank):
    """Ends as a library does that finds no way on: it writes why, and raises nothing."""
    os.write(2, b"what(): no room for a buffer\n")
    os.abort()


def test_what_an_aborted_rank_wrote_last_is_told():
    def meet():
        with Ranks(2, CPU, aborts) as ranks:
            ranks.join()
            Parallel(nn.Linear(2, 2))

    with pytest.raises(
        RankFailed, match=r"rank 1 of 2: ended by signal 6 \(SIGABRT\): what\(\): no room for a buffer$"
    ):
        meet()


def test_no_rank_outlives_rank_0():
    script = (
        "import time; from torch import nn; from harness.training.parallel import Parallel, Ranks\n"
        "from tests.harness.training.test_parallel import CPU, waits\n"
        "with Ranks(2, CPU, waits) as ranks: ranks.join(); Parallel(nn.Linear(2, 2)); print('met', flush=True); "
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"met\n"
        (rank,) = ranks_of(process.pid)
        process.kill()
    assert gone(rank)


def test_a_trial_of_two_ranks_scores_what_one_does_and_is_resumed(tiny, tmp_path):
    trial = tiny()
    alone = run_trial(trial, tmp_path / "alone")
    running = steps(trial, Sources(tmp_path, ranks=2))
    next(running)
    (rank,) = ranks_of(os.getpid())
    running.close()
    assert gone(rank)
    record = run_trial(trial, tmp_path, ranks=2)
    assert [e.loss for e in record.curve[1:]] == pytest.approx([e.loss for e in alone.curve[1:]], rel=1e-3)
    assert record.test["MAP@R"] == pytest.approx(alone.test["MAP@R"], abs=1e-3)
    assert record.test["R@1"] == pytest.approx(alone.test["R@1"], abs=0.01)  # two of 234 queries
    assert (record.provenance["ranks"], alone.provenance["ranks"]) == (2, 1)
    assert record.cost.forward_passes_per_step == alone.cost.forward_passes_per_step
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1
    assert ranks_of(os.getpid()) == []
    two, one = (
        checkpoint.load(Run(folder).checkpoints(trial) / "last.safetensors")[0]
        for folder in (tmp_path, tmp_path / "alone")
    )
    assert two["model"].keys() == one["model"].keys()
    assert two["optimizer"]["param_groups"] == one["optimizer"]["param_groups"]


def test_more_ranks_than_rows_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="ranks = 21 cannot share a batch: batch_size = 20"):
        run_trial(tiny(), tmp_path, ranks=21)
