"""What a grid would run, checked against the data and networks it names, before anything runs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import metrix
from harness import datasets, models, registry, rules
from harness.config import Arm, Grid, GridError, Trial
from harness.models import Embedder
from harness.record import Record
from harness.selection import PROTOCOLS
from harness.trial import embedder, evaluator_faults, open_dataset, split_of


@dataclass(frozen=True)
class Plan:
    """Trials to run, in order; `refused` holds (dataset, backbone, arm, reason) of cells without a Metrix form."""

    trials: tuple[Trial, ...]
    refused: tuple[tuple[str, str, str, str], ...] = ()


def make_plan(grid: Grid, data: Path | None = None, cache: Path | None = None) -> Plan:
    """The plan of a grid. Raises GridError with everything that would fail later, all at once.

    A combination without a Metrix form is refused when `arms` names it, and listed as not applicable when it comes
    out of the product of losses and levels.
    """
    trials = grid.trials()
    reasons = {trial.arm.label: refusal(trial.arm) for trial in trials}
    kept = [trial for trial in trials if not reasons[trial.arm.label]]
    named = [Arm.parse(text).label for text in grid.arms]
    problems = [f"arms: {label}: {reasons[label]}" for label in named if reasons[label]]
    problems += [finding.sentence for finding in evaluator_faults()]
    problems += _network_problems(kept) + _data_problems(kept, data, cache)
    if problems:
        raise GridError(grid.name, problems)
    if grid.compute_matched:
        kept += matched_baselines(kept)
    refused = {(*trial.cell, reason): None for trial in trials if (reason := reasons[trial.arm.label])}
    return Plan(tuple(kept), tuple(refused))


def refusal(arm: Arm) -> str | None:
    """Why an arm has no Metrix form; None where it has one, or is no Metrix arm."""
    if arm.metrix is None:
        return None
    about = registry.loss(arm.loss)
    if not about.metrix:
        return f"{arm.loss} has no Metrix form: {about.why_no_metrix}"
    return metrix.refusal(arm.loss, **arm.metrix.model_dump())


def _network_problems(trials: list[Trial]) -> list[str]:
    """Backbones, pooling, weights and stages that do not exist or do not fit; published weights are fetched here."""
    asked = {}
    for t in trials:
        if t.arm.loss != "pixels":
            stage, hardest = (t.arm.metrix.stage, t.arm.metrix.hardest) if t.arm.at == "feature" else (None, None)
            key = (t.backbone.model_dump_json(), t.model, t.images.side_px, stage, hardest)
            asked.setdefault(key, (t.backbone, t.model, t.images.side_px, stage, hardest))
    found = {}
    for network, model, side_px, stage, hardest in asked.values():
        wrong = models.problems(
            network.name, model.pooling, model.norm, network.pretrained, stage, network.options, side_px
        )
        if not wrong:
            try:
                models.fetch(network.name, network.pretrained, network.options, side_px)
            except models.ModelError as error:
                wrong = [str(error)]
        if not wrong and hardest is not None:
            stages = models.stages(network.name, network.options, side_px)
            reason = metrix.refusal("contrastive", at="feature", stage=stage, hardest=hardest, stages=stages)
            wrong = [reason] if reason else []
        found |= {f"backbones: {problem}": None for problem in wrong}
    return list(found)


def _data_problems(trials: list[Trial], data: Path | None, cache: Path | None) -> list[str]:
    """Datasets that are missing, broken or unfair, and batches that cannot be drawn from them."""
    problems = []
    for choice in dict.fromkeys(trial.dataset.model_dump_json() for trial in trials):
        some = [trial for trial in trials if trial.dataset.model_dump_json() == choice]
        try:
            dataset = open_dataset(some[0].dataset, data, cache)
        except datasets.DatasetError as error:
            problems.append(f"datasets: {error}")
            continue
        split = split_of(dataset, PROTOCOLS[some[0].protocol])
        problems += [f"datasets: {finding.sentence}" for finding in rules.over_data(dataset, split)]
        counts = np.unique(dataset.labels[split == "train"], return_counts=True)[1]
        problems += dict.fromkeys(p for trial in some if (p := _batch_problem(trial, counts)))
    return problems


def _batch_problem(trial: Trial, counts: np.ndarray) -> str | None:
    settings, name = trial.training, trial.dataset.name
    if settings.batch_size > counts.sum():
        return f"training.batch_size: {settings.batch_size} is more than the {counts.sum()} training images of {name}"
    if settings.sampler == "balanced":
        wanted = settings.batch_size // settings.examples_per_class
        if wanted > len(counts):
            return (
                f"training.batch_size: {settings.batch_size} images at {settings.examples_per_class} per class need "
                f"{wanted} classes; {name} has {len(counts)} for training"
            )
        if wanted < 2:
            return (
                f"training.examples_per_class: {settings.examples_per_class} of {settings.batch_size} images make a "
                f"batch of one class, which has no negatives for {trial.arm.label} to learn from or to mix with"
            )
    return None


def matched_baselines(trials: Sequence[Trial]) -> list[Trial]:
    """For every Metrix trial with more forward passes than its baseline, the baseline at as many (FAIR-07)."""
    networks: dict[tuple, Embedder] = {}
    found = {}
    for trial in trials:
        if trial.arm.metrix is None:
            continue
        key = (trial.backbone.model_dump_json(), trial.model, trial.images.side_px)
        if key not in networks:
            networks[key] = embedder(trial)
        if (ratio := round(_passes(trial, networks[key]), 2)) > 1:
            arm = trial.arm.model_copy(update={"metrix": None, "longer": ratio})
            longer = trial.model_copy(update={"arm": arm})
            found[longer.id] = longer
    return list(found.values())


def estimate(
    plan: Plan, records: Sequence[Record] = (), data: Path | None = None, cache: Path | None = None
) -> dict[str, float]:
    """Seconds each trial of a plan will take on one slot of this machine: trial id → seconds.

    The median of the cell's finished trials where there are some; else the time of a training step of its network,
    measured here, times its steps and forward passes. Evaluation and start are not counted.
    """
    done: dict[tuple, list[float]] = {}
    for record in records:
        done.setdefault(record.trial.cell, []).append(record.cost.wall_s)
    paces: dict[tuple, tuple[float, Embedder]] = {}
    seconds = {}
    for trial in plan.trials:
        if trial.cell in done:
            seconds[trial.id] = float(np.median(done[trial.cell]))
        elif trial.arm.at == "floor":
            seconds[trial.id] = 0.0
        else:
            key = (trial.backbone.model_dump_json(), trial.model, trial.images.side_px)
            if key not in paces:
                paces[key] = _pace(trial)
            pace, network = paces[key]
            seconds[trial.id] = pace * _images(trial, data, cache) * _passes(trial, network)
    return seconds


def _pace(trial: Trial) -> tuple[float, Embedder]:
    """Seconds an image takes forward and backward (median of three steps after one to warm up); the network."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = embedder(trial).to(device).train()
    side, size = trial.images.side_px, min(trial.training.batch_size, 32)
    images, times = torch.rand(size, 3, side, side, device=device), []
    for _ in range(4):
        began = time.perf_counter()
        network(images).square().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[1] / size, network


def _images(trial: Trial, data: Path | None, cache: Path | None) -> int:
    dataset = open_dataset(trial.dataset, data, cache)
    split = split_of(dataset, PROTOCOLS[trial.protocol])
    return int((split == "train").sum()) * trial.schedule.epochs


def _passes(trial: Trial, network: Embedder) -> float:
    """Forward passes per step as planned: 1 for a baseline, more for the mixed rows a level adds."""
    level = trial.arm.metrix
    if level is None or level.at == "embedding":
        return 1.0
    share = 1.0 if level.at == "input" else network.share(level.stage or network.stages()[-1], trial.images.side_px)
    settings = trial.training
    others = settings.batch_size - (settings.examples_per_class if settings.sampler == "balanced" else 1)
    return 1.0 + share * (others if level.hardest == "all" else level.hardest or 1)
