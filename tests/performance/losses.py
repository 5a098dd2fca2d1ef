"""What a loss costs, what Metrix adds to it at the embedding level, and what other ways of computing the same cost.

Forward and backward in float32, n = 100 (20 classes of 5), d = 512 unless stated otherwise. Ratios within one run:
the variants take turns, and the median of the rounds counts.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import baselines
from baselines.weights import Weights
from metrix import Metrix, refusal
from tests.performance import _clock

NEARLY_FREE = (
    "contrastive",
    "multi_similarity",
    "binomial_deviance",
    "lifted_structure",
    "circle",
    "proxy_anchor",
)
RANKS = ("smooth_ap", "recall_at_k")
AIM_MIXED, AIM_MATERIALISED, AIM_CHUNKED, AIM_GB = 2.5, 100, 2.0, 1.0
AIM_RANKED, AIM_RANKED_GB = 10.0, 0.1
CLASSES, DIM, LAM = 20, 512, 0.6


def main() -> None:
    """Print the tables; `--large` and `--ranked` call it again in a process of its own, for its memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", nargs=2, metavar=("LOSS", "PAIRS"), help=argparse.SUPPRESS)
    parser.add_argument("--ranked", metavar="LOSS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.large:
        return large(*options.large)
    if options.ranked:
        return ranked(options.ranked)
    print(f"losses, {options.threads} thread(s), torch {torch.__version__}, median of {options.rounds} rounds")
    mixed(options.rounds)
    against_pytorch_metric_learning(options.rounds)
    print("\nchunked, n = 512 (64 classes of 8): ℓ̃ against one exp-and-sum over the same similarities")
    print(f"  {'loss':<18} {'pairs':<8} {'similarities':>12} {'exp-and-sum':>12} {'ℓ̃':>9}  ratio   peak above start")
    for name in ("multi_similarity", "contrastive", "proxy_anchor", *ANCHORS):
        for pairs in ("pos-neg",) if name in ANCHORS else ("neg-neg", "pos-pos"):
            by_itself("--large", name, pairs, threads=options.threads)
    print("\nranks in chunks, n = 512 (64 classes of 8): the loss of similarities against one logistic-and-sum")
    print(f"  {'loss':<18} {'comparisons':>12} {'logistic':>12} {'loss':>9}  ratio   peak above start")
    for name in RANKS:
        by_itself("--ranked", name, threads=options.threads)


def by_itself(*arguments: str, threads: int) -> None:
    """Call this file in a process of its own, since peak memory never falls."""
    subprocess.run([sys.executable, "-m", __spec__.name, "--threads", str(threads), *arguments], check=True)


ANCHORS = ("nca", "proxy_nca", "proxy_nca_pp", "norm_softmax", "soft_triple")


def mixed(rounds: int) -> None:
    """Clean loss, clean + mixed, and the mixed loss over materialised vectors."""
    print("\nℓ + wℓ̃ at the embedding level, all pairs, and ℓ̃ with its vectors formed")
    print(f"  aim: at most {AIM_MIXED} × the clean loss, if possible 1.5 ×, and {AIM_MATERIALISED} × faster")
    print(f"  {'loss':<18} {'pairs':<8} {'clean':>9} {'+ Metrix':>9}  ratio   materialised, that ÷ (Metrix − clean)")
    for name in NEARLY_FREE:
        for pairs in ("pos-neg", "anc-neg"):
            loss = create(name)
            criterion = Metrix(loss, pairs=pairs)
            embeddings, labels = batch()
            seconds = take_turns(
                {
                    "clean": lambda: loss(embeddings, labels),  # noqa: B023
                    "metrix": lambda: criterion(embeddings, labels),  # noqa: B023
                },
                rounds,
                embeddings,
            )
            whole = take_turns(
                {"materialised": lambda: materialised(loss, embeddings, labels, pairs)},  # noqa: B023
                3,
                embeddings,
                repeat=1,
            )["materialised"]
            clean, both = seconds["clean"], seconds["metrix"]
            ratio, gain = both / clean, whole / max(both - clean, 1e-9)
            print(
                f"  {name:<18} {pairs:<8} {clean * 1e3:6.3f} ms {both * 1e3:6.3f} ms  {ratio:4.2f} ×"
                f"  {whole * 1e3:8.1f} ms {gain:7.0f} ×  {'' if ratio <= AIM_MIXED else 'MISSED'}"
            )


def materialised(loss: baselines.Loss, embeddings: Tensor, labels: Tensor, pairs: str) -> Tensor:
    """ℓ̃ of a balanced batch over mixed vectors that are formed, one for each anchor and pair."""
    z = torch.nn.functional.normalize(embeddings)
    batch = loss.batch(embeddings, labels)
    positive, negative = loss.sides(batch)
    anchors = batch.embeddings if loss.anchors == "examples" or batch.proxies is None else batch.proxies
    a, j = negative.nonzero(as_tuple=True)
    if pairs == "anc-neg":
        first = anchors[a]
    else:
        own = positive.nonzero()[:, 1].view(len(anchors), -1)
        first, j, a = z[own[a].flatten()], j.repeat_interleave(own.shape[1]), a.repeat_interleave(own.shape[1])
    vectors = torch.nn.functional.normalize(LAM * first + (1 - LAM) * z[j])
    s = (anchors[a] * vectors).sum(1).view(len(anchors), -1)
    return loss.formula(s, *Weights.of_label(s.new_zeros(1, 1), LAM, s.shape)).mean()


def against_pytorch_metric_learning(rounds: int) -> None:
    """The clean losses against those of pytorch-metric-learning on the same input."""
    from pytorch_metric_learning import distances, losses

    theirs = {
        "multi_similarity": losses.MultiSimilarityLoss(alpha=18, beta=75, base=0.77),
        "contrastive": losses.ContrastiveLoss(
            pos_margin=1,
            neg_margin=0.5,  # pyright: ignore[reportArgumentType] (its default is 0, and it has no types)
            distance=distances.CosineSimilarity(),
        ),
        "lifted_structure": losses.GeneralizedLiftedStructureLoss(),
        "nca": losses.NCALoss(softmax_scale=10, distance=distances.CosineSimilarity()),
        "proxy_anchor": losses.ProxyAnchorLoss(CLASSES, DIM),
        "proxy_nca": losses.ProxyNCALoss(CLASSES, DIM),
        "triplet": losses.TripletMarginLoss(margin=0.1, distance=distances.CosineSimilarity()),
        "margin": losses.MarginLoss(),
        "circle": losses.CircleLoss(),
        "supcon": losses.SupConLoss(),
        "smooth_ap": losses.SmoothAPLoss(),
        "recall_at_k": losses.SmoothAPLoss(),  # it has no recall@k
        "norm_softmax": losses.NormalizedSoftmaxLoss(CLASSES, DIM),
        "arcface": losses.ArcFaceLoss(CLASSES, DIM),
        "cosface": losses.CosFaceLoss(CLASSES, DIM),
        "soft_triple": losses.SoftTripleLoss(CLASSES, DIM),
    }
    print("\nclean losses beside pytorch-metric-learning (aim: at least as fast)")
    for name, their in theirs.items():
        loss = create(name, tau=0.0) if name == "soft_triple" else create(name)  # theirs has no regulariser
        embeddings, labels = batch()
        seconds = take_turns(
            {"ours": lambda: loss(embeddings, labels), "theirs": lambda: their(embeddings, labels)},  # noqa: B023
            rounds,
            embeddings,
        )
        ratio = seconds["ours"] / seconds["theirs"]
        print(
            f"  {name:<18} {seconds['ours'] * 1e3:7.3f} ms, theirs {seconds['theirs'] * 1e3:8.3f} ms:"
            f" {ratio:5.2f} ×  {'' if ratio <= 1 else 'MISSED'}"
        )


def large(name: str, pairs: str) -> None:
    """One row of the table of chunked losses."""
    embeddings, labels = batch(64, 8)
    loss = create(name, 64)
    criterion = Metrix(loss)
    assert refusal(loss, pairs=pairs) is None
    criterion.mixed_loss(embeddings[:16], labels[:16] % 2, pairs=pairs, lam=LAM).backward()
    before = peak_gb()
    ours = min(seconds_of(lambda: criterion.mixed_loss(embeddings, labels, pairs=pairs, lam=LAM)) for _ in range(2))
    peak = peak_gb() - before
    n, candidates = 512, 64 * 10 if name == "soft_triple" else 64
    count = {
        "neg-neg": (64 if name == "proxy_anchor" else n) * (n - 8) * (n - 9),
        "pos-pos": 64 * 8 * 7 if name == "proxy_anchor" else n * 7 * 6,
        "pos-neg": n * (n - 8) * (n - 2 if name == "nca" else candidates),
    }[pairs]
    x = torch.rand(count, requires_grad=True)
    reference = min(seconds_of(lambda: x.exp().sum()) for _ in range(2))
    ratio = ours / reference
    large_enough = count > 10**6
    print(
        f"  {name:<18} {pairs:<8} {count:>12,} {reference * 1e3:9.1f} ms {ours * 1e3:6.0f} ms  {ratio:5.2f}"
        f"   {peak:5.2f} GB  {'MISSED' if (ratio > AIM_CHUNKED and large_enough) or peak > AIM_GB else ''}",
        flush=True,
    )


def ranked(name: str) -> None:
    """One row of the table of ranks; all comparisons of 512 anchors at once would be 512³."""
    embeddings, labels = batch(64, 8)
    loss = create(name)
    loss(embeddings[:16], labels[:16] % 2).backward()
    given = loss.batch(embeddings, labels)
    given.similarities = given.similarities.detach().requires_grad_()
    before = peak_gb()
    ours = min(seconds_of(lambda: loss.clean(given)) for _ in range(20))
    peak = peak_gb() - before
    x = torch.rand(512, 7, 512, requires_grad=True)
    reference = min(seconds_of(lambda: x.sigmoid().sum()) for _ in range(20))
    ratio = ours / reference
    print(
        f"  {name:<18} {x.numel():>12,} {reference * 1e3:9.1f} ms {ours * 1e3:6.1f} ms  {ratio:5.2f}"
        f"   {peak:5.3f} GB  {'MISSED' if ratio > AIM_RANKED or peak > AIM_RANKED_GB else ''}",
        flush=True,
    )


def seconds_of(function: Callable[[], Tensor]) -> float:
    """Seconds of forward and backward, once."""
    began = time.perf_counter()
    function().backward()
    return time.perf_counter() - began


def create(name: str, classes: int = CLASSES, **hyperparameters: Any) -> baselines.Loss:
    """A loss with its proxies drawn from seed 0."""
    sizes: dict[str, Any] = {"num_classes": classes, "dim": DIM}
    return baselines.create(name, **sizes, generator=torch.Generator().manual_seed(0), **hyperparameters)


def batch(classes: int = CLASSES, examples: int = 5) -> tuple[Tensor, Tensor]:
    """Random embeddings around the centres of their classes, with a gradient."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(examples)
    centres = torch.randn(classes, DIM, generator=generator)
    embeddings = centres[labels] + torch.randn(len(labels), DIM, generator=generator)
    return embeddings.requires_grad_(), labels


def take_turns(
    variants: dict[str, Callable[[], Tensor]], rounds: int, leaf: Tensor, repeat: int = 10
) -> dict[str, float]:
    """Median seconds of forward and backward of each variant, the variants taking turns."""

    def step(variant: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            leaf.grad = None
            variant().backward()

        return run

    seconds = _clock.take_turns({name: step(variant) for name, variant in variants.items()}, rounds, repeat)
    return {name: statistics.median(times) for name, times in seconds.items()}


def peak_gb() -> float:
    """The most memory this process has held so far (Linux; getrusage would count that of the parent)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
