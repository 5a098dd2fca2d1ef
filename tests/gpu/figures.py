"""Measure costs on a GPU: bare networks and trials, levels, losses, evaluation, an epoch, options of training."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn

import metrix
from harness.config import Arm
from harness.evaluation.retrieval import evaluate
from harness.training.bench import Bench
from harness.training.compiled import compile_backbone
from harness.training.criterion import build_criterion
from harness.training.pipeline import IN_TURN
from tests.gpu.bench import bench_over, one_batch, train, with_ready_batch
from tests.gpu.place import Place
from tests.performance import losses as made
from tests.performance._clock import take_turns, wait_for
from tests.performance.retrieval import products_like

LEVELS = ("embedding", "feature", "feature[stage={stage}]", "input")
KS = (1, 10, 100, 1000)
Ways = tuple[int, dict[str, Callable[[], object]]]


def resnet(place: Place) -> None:
    """Measure images per second of the ResNet."""
    network(place, place.sizes.networks[0])


def vit(place: Place) -> None:
    """Measure images per second of the vision transformer."""
    network(place, place.sizes.networks[1])


def efficientnet(place: Place) -> None:
    """Measure images per second of the EfficientNet."""
    network(place, place.sizes.networks[2])


def network(place: Place, name: str) -> None:
    """Measure images per second of the bare network, and of a trial on both image paths, with the share of waiting.

    A trial waits for data as long as its steps take longer than the same steps on a batch that lies ready.
    """
    sizes = place.sizes
    at = f"{name}, {sizes.side_px} px, bf16, batch {sizes.batch}"
    seconds = take_turns({"bare": bare(place, name)}, sizes.rounds, sizes.repeat, place.device)["bare"]
    place.measured(f"{at}, bare: forward, backward, optimiser", "images/s", [sizes.batch / s for s in seconds])
    for path in ("cache", "classical"):
        trial = place.large(name, path=path, epochs=sizes.epochs + 1)
        bench = bench_over(place, trial, sizes.steps * sizes.batch)
        if path == "cache":
            ready = steps_a_second(with_ready_batch(bench))
            place.measured(f"{at}, trial, a ready batch", "images/s", [sizes.batch * rate for rate in ready])
        rates = steps_a_second(bench)
        cores = f", {place.cores} cores" if path == "classical" else ""
        place.measured(f"{at}, trial, {path} path{cores}", "images/s", [sizes.batch * rate for rate in rates])
        share = [max(0.0, 1 - rate / ready_rate) for rate, ready_rate in zip(rates, ready, strict=True)]
        place.measured(f"{at}, trial, {path} path{cores}: waiting for data", "of the time", share)


def steps_a_second(bench: Bench) -> list[float]:
    """Return training steps per second in each epoch but the first."""
    steps = len(bench.dataset) // bench.trial.training.batch_size
    return [steps / epoch.train_s for epoch in train(bench)]


def bare(place: Place, name: str) -> Callable[[], None]:
    """A step of timm's own network, channels last, under bfloat16 autocast with fused AdamW, on a ready batch."""
    sizes, device = place.sizes, place.device
    size = {"img_size": sizes.side_px} if "vit" in name else {}
    model = timm.create_model(name, num_classes=sizes.dim, **size).train()
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(sizes.batch, 3, sizes.side_px, sizes.side_px, device=device)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(images).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def levels(place: Place) -> None:
    """Seconds of a step with Metrix at each level over those of its baseline, on a ready batch of the ResNet."""
    name = place.sizes.networks[0]
    for loss in ("contrastive", "multi_similarity"):
        bench = bench_over(place, place.large(name, loss), 2 * place.sizes.batch)
        arms = [loss, *(f"{loss}+{level.format(stage='layer3')}" for level in LEVELS)]
        steps = {arm: step(bench, objective_of(bench, arm)) for arm in arms}
        seconds = take_turns(steps, place.sizes.rounds, place.sizes.repeat, place.device)
        place.measured(f"{name}, a step of {loss}", "ms", [1e3 * s for s in seconds[loss]])
        for arm in arms[1:]:
            place.measured(f"{name}, a step of {arm} ÷ baseline", "×", ratios(seconds[arm], seconds[loss]))


def objective_of(bench: Bench, arm: str) -> nn.Module:
    """Return the objective of another arm on the same bench."""
    trial = bench.trial.model_copy(update={"arm": Arm.parse(arm)})
    return build_criterion(trial, int(bench.split_images("train").labels.max()) + 1).to(bench.device)


def step(bench: Bench, criterion: nn.Module, labels_at: torch.device | None = None) -> Callable[[], None]:
    """Return a training step on one ready batch, whose labels are in host memory or where `labels_at` says."""
    images, labels = one_batch(bench)
    labels = labels if labels_at is None else labels.to(labels_at)
    groups = [{"params": list(bench.model.parameters())}, *criterion.parameter_groups(1e-4)]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    criterion.train()

    def run() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = criterion.objective(bench.model, images, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


class Nothing(nn.Module):
    """A network that returns its rows (n, d) unchanged, so that only the criterion takes time."""

    def stages(self) -> tuple[str, str]:
        """Return a stage before the last, and the last."""
        return "first", "last"

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows."""
        return rows

    def forward_to(self, stage: str, rows: Tensor) -> Tensor:
        """Return the rows."""
        return rows

    def forward_from(self, stage: str, maps: Tensor) -> Tensor:
        """Return the rows."""
        return maps

    def forward_joint(self, stage: str, rows: Tensor, mix: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the rows and the mixed ones."""
        return rows, mix(rows)


def criteria(place: Place) -> None:
    """Measure milliseconds, forward and backward, of losses and of Metrix at every level, without a network."""
    for name in place.sizes.timed_losses:
        for n in place.sizes.loss_batches:
            variants = criteria_of(place, name, n)
            seconds = take_turns(variants, place.sizes.rounds, place.sizes.repeat, place.device)
            at = f"{name}, n = {n}, d = {made.DIM}"
            place.measured(f"{at}, loss alone", "ms", [1e3 * s for s in seconds["baseline"]])
            for level in list(variants)[1:]:
                place.measured(f"{at}, loss and Metrix at {level}", "ms", [1e3 * s for s in seconds[level]])
                ratio = ratios(seconds[level], seconds["baseline"])
                place.measured(f"{at}, loss and Metrix at {level} ÷ loss", "×", ratio)


def criteria_of(place: Place, name: str, n: int) -> dict[str, Callable[[], None]]:
    """Forward and backward of a loss over n embeddings, five of each class, plain and at each level."""
    embeddings, labels = made.batch(n // 5)
    leaf = embeddings.detach().to(place.device).requires_grad_()
    nothing = Nothing()
    plain = made.create(name, n // 5).to(place.device)
    criteria: dict[str, nn.Module] = {"baseline": plain}
    for level in LEVELS:
        options = Arm.parse(f"{name}+{level.format(stage='first')}").metrix.model_dump()
        if metrix.refusal(name, **options) is None:
            criteria[level.format(stage="first")] = metrix.Metrix(plain, **options)

    def run(criterion: nn.Module) -> None:
        leaf.grad = None
        criterion.objective(nothing, leaf, labels).backward()

    return {level: lambda criterion=criterion: run(criterion) for level, criterion in criteria.items()}


def evaluation(place: Place) -> None:
    """Measure seconds and peak memory of an evaluation of the size of Stanford Online Products, on the device."""
    sizes, device = place.sizes, place.device
    embeddings, labels = products_like(sizes.gallery, sizes.dim, 2.2)
    moved = torch.from_numpy(embeddings).to(device)
    ks = [k for k in KS if k < sizes.gallery]
    if not place.stand_in:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    seconds = take_turns(
        {"": lambda: evaluate(moved, labels, ks=ks, engine="torch")}, min(3, sizes.rounds), device=device
    )[""]
    at = f"evaluation of {sizes.gallery:,} × {sizes.dim}, R@1 to R@{ks[-1]} and MAP@R"
    place.measured(at, "s", seconds)
    if not place.stand_in:
        above = torch.cuda.max_memory_allocated(device) - before
        place.note(f"{at}: peak memory above the embeddings", above / 1e9, "GB")
    product = take_turns({"": lambda: blocks(moved)}, min(3, sizes.rounds), device=device)[""]
    place.measured(f"one float32 product of {sizes.gallery:,} × {sizes.dim} with itself", "s", product)


def blocks(embeddings: Tensor) -> None:
    """Compute all similarities in blocks, and discard them."""
    for queries in embeddings.split(1024):
        torch.mm(queries, embeddings.T)


def epoch(place: Place) -> None:
    """Measure seconds of an epoch of the size of CUB-200-2011, and of reading a test split of its size."""
    sizes = place.sizes
    name = sizes.networks[0]
    trial = place.large(name, epochs=3)
    bench = bench_over(place, trial, sizes.epoch_images)
    at = f"{name}, {sizes.side_px} px, bf16, batch {sizes.batch}, cache path"
    place.measured(f"{at}: an epoch of {sizes.epoch_images:,} images", "s", [epoch.train_s for epoch in train(bench)])
    every = torch.arange(sizes.test_images) % sizes.epoch_images
    labels = bench.dataset.labels[every.numpy()]

    def score() -> None:
        evaluate(bench.embed(every), labels, ks=(1, 2, 4, 8))

    seconds = take_turns({"": score}, 1, device=place.device)[""]
    place.measured(f"{at}: {sizes.test_images:,} test images embedded in float32 and scored", "s", seconds)


def options(place: Place) -> None:
    """Measure each option: every way relative to the first of its row, and the seconds of the first call.

    A way that fails, as torch.compile may, is noted with the reason.
    """
    for name, ways_of in OPTIONS.items():
        images, ways, works = *ways_of(place), {}
        for way, call in ways.items():
            began = time.perf_counter()
            try:
                call()
            except Exception as error:  # whatever a compiler raises
                place.note(f"{name}, {way}: failed", _first_line(error))
                continue
            wait_for(place.device)
            place.note(f"{name}, {way}: the first time", time.perf_counter() - began, "s")
            works[way] = call
        seconds = take_turns(works, place.sizes.rounds, place.sizes.repeat, device=place.device)
        before, *others = seconds
        for way, times in seconds.items():
            place.measured(f"{name}, {way}", "images/s", [images / s for s in times])
        for way in others:
            place.measured(f"{name}, seconds of {way} ÷ {before}", "×", ratios(seconds[way], seconds[before]))


def compiled(network: int, place: Place) -> Ways:
    """A training step with each way to compile one of the networks; a stand-in compiles nothing."""
    if place.stand_in:
        with patch.object(torch, "compile", lambda function, **_: function):
            return place.sizes.batch, {way: _compiled_step(place, network, way) for way in COMPILED}
    return place.sizes.batch, {way: _compiled_step(place, network, way) for way in COMPILED}


def _compiled_step(place: Place, network: int, way: str) -> Callable[[], None]:
    trial = place.large(place.sizes.networks[network], compile=way)
    bench = bench_over(place, trial, 2 * place.sizes.batch)
    compile_backbone(bench.model, trial.training)
    return step(bench, bench.criterion())


def pipeline(path: str, place: Place) -> Ways:
    """Two epochs of training with batches that are read in their turn, and ahead."""
    trial = place.large(place.sizes.networks[0], path=path, epochs=2)
    bench = bench_over(place, trial, 10 * place.sizes.batch)
    ways = {"read in their turn": IN_TURN, "read ahead": bench.pipeline}
    return 20 * place.sizes.batch, {way: partial(train, replace(bench, pipeline=p)) for way, p in ways.items()}


def labels(place: Place) -> Ways:
    """A training step that asks the device for its labels, and one that knows them."""
    bench = bench_over(place, place.large(place.sizes.networks[0]), 2 * place.sizes.batch)
    ways = {"on the device": place.device, "in host memory": None}
    arm = "multi_similarity+feature"
    return place.sizes.batch, {way: step(bench, objective_of(bench, arm), at) for way, at in ways.items()}


def searches(place: Place) -> Ways:
    """An evaluation that compares each query with the whole gallery, and one that computes each similarity once."""
    embeddings, classes = products_like(place.sizes.gallery, place.sizes.dim, 2.2)
    score = partial(evaluate, torch.from_numpy(embeddings).to(place.device), classes, engine="torch")
    ways = {"whole rows": partial(score, query_ids=range(len(classes))), "each similarity once": score}
    return len(classes), ways


COMPILED = ("none", "network", "cuda_graphs")
OPTIONS: dict[str, Callable[[Place], Ways]] = {  # each row: images of a call, and calls that differ in one option
    "batches of decoded images": partial(pipeline, "cache"),
    "batches of files": partial(pipeline, "classical"),
    "a step of the ResNet with Metrix, labels": labels,
    "an evaluation": searches,
    "a step of the ResNet, training.compile": partial(compiled, 0),
    "a step of the vision transformer, training.compile": partial(compiled, 1),
}


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Divide round by round."""
    return [a / b for a, b in zip(of, to, strict=True)]


def _first_line(error: Exception) -> str:
    with suppress(IndexError):
        return str(error).strip().splitlines()[0]
    return type(error).__name__
