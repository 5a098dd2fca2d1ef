"""The plan of a grid: what it would run, checked against its data and networks before anything runs."""

import os
import platform
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metrix
from harness import registry
from harness.config import FEATURES, PIXELS, Arm, Backbone, Model, Trial
from harness.data import datasets
from harness.data.cache import default_folder, remembered
from harness.errors import GridError, UserError
from harness.fairness import rules
from harness.fairness.protocols import PROTOCOLS
from harness.grid import Grid
from harness.runs.provenance import code_digest, provenance
from harness.runs.record import Record
from harness.training import anatomy, backbones, embedder, weights
from harness.training.bench import evaluator_faults, scores_of, split_of, splits_of
from harness.training.criterion import build_criterion, layers
from harness.training.devices import device_name
from harness.training.head import frozen_problem
from harness.training.network import on_noise
from harness.training.pictures import open_dataset
from metrix import levels, rivals
from metrix.rivals._form import Rival

CODE = code_digest()  # of the imported code, even if the files change afterwards
UNKNOWN_CLASSES = 2  # the number that a loss is built with if the data cannot be opened
HUBS = ("HF_HUB_CACHE", "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME")  # variables for the folders of published weights


@dataclass(frozen=True)
class Plan:
    """Trials to run, in order; `refused` holds (dataset, backbone, arm, reason) of losses with a level that has
    no form for them.

    `notes` are sentences to show before anything runs, such as which files are no part of a dataset.
    """

    trials: tuple[Trial, ...]
    refused: tuple[tuple[str, str, str, str], ...] = ()
    notes: tuple[str, ...] = ()


def make_plan(grid: Grid, data: Path | None = None, cache: Path | None = None) -> Plan:
    """Return the plan of a grid. Raise GridError with everything that is unfair or would fail later, all at once.

    A level without a form for its loss is refused when `arms` names it, and listed as not applicable when it comes
    out of the product of losses and levels.
    """
    trials = grid.trials()
    cells = same_but_seed(trials)
    reasons = [no_form_reason(cell[0]) for cell in cells]
    refused = [(*cell[0].cell, reason) for cell, reason in zip(cells, reasons, strict=True) if reason]
    fit = [cell[0] for cell, reason in zip(cells, reasons, strict=True) if not reason]
    why = {arm: reason for _, _, arm, reason in refused}
    named = [Arm.parse(text).label for text in grid.arms]
    problems = [*unfair(grid.model_dump(mode="json"))]
    problems += [f"arms: {label}: {why[label]}" for label in named if label in why]
    problems += dict.fromkeys(
        f"arms: {trial.arm.label}: {trial.arm.longer:g} × {trial.training.epochs} epochs are less than one"
        for trial in fit
        if trial.schedule.epochs < 1
    )
    problems += dict.fromkeys(
        f"arms: {FEATURES}: {trial.backbone.name} has no pretrained weights, whose features could be compared; in "
        "backbones, set pretrained to true or to a file"
        for trial in fit
        if trial.arm.loss == FEATURES and not trial.backbone.pretrained
    )
    problems += [finding.sentence for finding in evaluator_faults()]
    unfit, notes = _data_problems(fit, data, cache)
    misfit, more = _network_problems(fit, cache)
    problems += misfit + unfit
    notes += more
    if problems:
        raise GridError(grid.name, problems)
    impossible = {cell[0].without_seed for cell, reason in zip(cells, reasons, strict=True) if reason}
    kept = [trial for trial in trials if trial.without_seed not in impossible]
    if grid.compute_matched:
        kept += matched_baselines(kept, cache)
    return Plan(tuple(kept), tuple(dict.fromkeys(refused)), tuple(notes))


def unfair(settings: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each setting of a grid that would make a comparison unfair."""
    return list(dict.fromkeys(finding.sentence for finding in rules.over_grid(settings)))


def same_but_seed(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return groups of trials that differ only in their seeds, in order, so that a check needs one of each group."""
    groups: dict[tuple, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.without_seed, []).append(trial)
    return list(groups.values())


def no_form_reason(trial: Trial) -> str | None:
    """Return why a level of the arm has no form for its loss and network; None if each has, or there is none."""
    arm = trial.arm
    if not arm.levels:
        return None
    about = registry.loss(arm.loss)
    if arm.metrix and not about.metrix:
        return f"{arm.loss} has no Metrix form: {about.why_no_metrix}"
    if about.kind == "library":
        return f"{arm.loss} is a loss of another library, which takes no level"
    reasons = [frozen_problem(trial)]
    if arm.rival:
        reasons.append(levels.refusal(arm.rival.at, arm.loss, arm.options, **arm.rival.options))
    if arm.metrix:
        reasons.append(metrix.refusal(arm.loss, **arm.metrix.model_dump()))
    return next(filter(None, reasons), None)


def _network_problems(trials: list[Trial], cache: Path | None) -> tuple[list[str], list[str]]:
    """Return what is wrong with backbones, pooling, weights and stages, and what was unwrapped in files of weights.

    Published weights are fetched here, and every file of weights is opened once. A network without problems is
    remembered while the code and the packages are the same, because checking it imports timm.
    """
    networks = {}
    for t in trials:
        if t.arm.loss != PIXELS:
            frozen = t.model.backbone == "frozen"  # whose one stage `frozen_problem` checks
            level = t.arm.metrix if t.arm.at == "feature" and not frozen else None
            stage, hardest = (level.stage, level.hardest) if level else (None, None)
            key = (t.backbone.model_dump_json(), t.model, t.images.side_px, stage, hardest)
            networks.setdefault(key, (t.backbone, t.model, t.images.side_px, stage, hardest))
    problems, notes, hubs = {}, {}, [os.environ.get(name) for name in HUBS]
    for network, model, *rest in networks.values():
        key = ["network", *_builders(), network.model_dump(mode="json"), model.model_dump(mode="json"), *rest, hubs]
        about = remembered(cache or default_folder(), key, partial(_check_network, network, model, *rest), _unchanged)
        problems |= {f"backbones: {problem}": None for problem in about["problems"]}
        if about["unwrapped"]:
            notes[f"{Path(about['weights']).name}: {about['unwrapped']}"] = None
    return list(problems), list(notes)


def _check_network(
    network: Backbone, model: Model, side_px: int, stage: str | None, hardest: int | str | None
) -> dict:
    """Return the problems of a network, and the file of its weights if there are none."""
    wrong = embedder.problems(
        network.name, model.pooling, model.norm, network.pretrained, stage, network.options, side_px
    )
    file, unwrapped = None, ""
    if not wrong:
        try:
            file = weights.fetch(network.name, network.pretrained, network.options, side_px)
            if file:
                published = network.pretrained is True
                unwrapped = weights.open_weights(network.name, file, published, network.options, side_px)
        except backbones.ModelError as error:
            wrong = [str(error)]
    if not wrong and hardest is not None:
        stages = anatomy.stages(network.name, network.options, side_px)
        reason = metrix.refusal("contrastive", at="feature", stage=stage, hardest=hardest, stages=stages)
        wrong = [reason] if reason else []
    return {"problems": wrong, "weights": file and str(file), "stamp": _stamp(file), "unwrapped": unwrapped}


def _unchanged(about: dict) -> bool:
    """Return whether a network had no problems and the file of its weights is unchanged."""
    return not about["problems"] and _stamp(about["weights"]) == about["stamp"]


def _stamp(file: str | Path | None) -> list[int] | None:
    """Return the size and times of a file, which change when it is replaced; None if it does not exist."""
    if file is None or not Path(file).is_file():
        return None
    status = Path(file).stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _builders() -> list[str]:
    """Return what decides how a network is built and counted."""
    packages = provenance()["packages"]
    return [CODE, packages["timm"], packages["torch"]]


def _data_problems(trials: list[Trial], data: Path | None, cache: Path | None) -> tuple[list[str], list[str]]:
    """Return what is wrong with the data of trials, and notes on what is left out of them.

    Problems are datasets that are missing, broken or unfair, splits that cannot be scored, batches that cannot be
    drawn, and losses that refuse their options or number of classes.
    """
    problems, notes = [], []
    for choice in dict.fromkeys(trial.dataset.model_dump_json() for trial in trials):
        using = [trial for trial in trials if trial.dataset.model_dump_json() == choice]
        classes = UNKNOWN_CLASSES
        try:
            dataset = open_dataset(using[0].dataset, data, cache)
            notes += [f"{dataset.name}: {passed}" for passed in dataset.passed_over]
            for users, split in splits_of(dataset, using):
                problems += [f"datasets: {finding.sentence}" for finding in rules.over_data(dataset, split)]
                counts = np.unique(dataset.labels[split == "train"], return_counts=True)[1]
                problems += [p for trial in users if (p := _batch_problem(trial, counts) or _useless(trial, counts))]
                scores = scores_of(users[0], dataset, split)
                fold = f"fold {users[0].fold} of {users[0].folds}: " if users[0].fold else ""
                problems += [f"datasets: {fold}{problem}" for problem in scores.problems]
                notes += [fold + note for note in scores.notes.values()]
                classes = len(counts)
        except UserError as error:  # a dataset that cannot be opened or split
            problems.append(f"datasets: {error}")
        problems += _loss_problems(using, classes)
    names = sorted({trial.dataset.name for trial in trials})
    if data is not None and names and not any(datasets.describe(name).needs_data for name in names):
        verb = "is" if len(names) == 1 else "are"
        notes.append(f"--data {data} is not read: {', '.join(names)} {verb} embedded")
    return list(dict.fromkeys(problems)), list(dict.fromkeys(notes))


def _loss_problems(trials: Sequence[Trial], classes: int) -> list[str]:
    """Return a sentence for each loss or level that refuses the options of its arm; each is built once."""
    problems = []
    for trial in {trial.arm.label: trial for trial in trials if trial.arm.at != "floor"}.values():
        try:
            criterion = build_criterion(trial, classes)
        except (TypeError, ValueError) as error:
            problems.append(f"losses: {trial.arm.label}: {error}")
            continue
        sizes = trial.training.batch_size, trial.model.dim
        kept = sum(layer.kept_bytes(*sizes) for layer in layers(criterion) if isinstance(layer, Rival))
        if kept > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
            problems.append(
                f"levels: {trial.arm.label} keeps {kept / 1e9:.1f} GB of earlier steps in memory; this machine has "
                f"{memory / 1e9:.1f} GB, so let it keep less"
            )
    return problems


def _batch_problem(trial: Trial, counts: np.ndarray) -> str | None:
    """Return why no batch can be drawn from training classes of `counts` images each; None if one can."""
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


def _useless(trial: Trial, counts: np.ndarray) -> str | None:
    """Return why the level of an arm would never act in a training on classes of `counts` images; None if it acts."""
    if (rival := trial.arm.rival) is None:
        return None
    steps = trial.schedule.epochs * (counts.sum() // trial.training.batch_size)
    problem = rivals.find(rival.at).useless(rival.options, int(steps))
    return problem and f"levels: {trial.arm.label} on {trial.dataset.name}: {problem}"


def matched_baselines(trials: Sequence[Trial], cache: Path | None = None) -> list[Trial]:
    """Return the baseline at as many forward passes of every level with more than its baseline (FAIR-07)."""
    longer_by_id = {}
    for trial in trials:
        if trial.arm.levels and (ratio := round(_passes(trial, cache), 2)) > 1:
            arm = trial.arm.model_copy(update={"metrix": None, "rival": None, "longer": ratio})
            longer = trial.model_copy(update={"arm": arm})
            longer_by_id[longer.id] = longer
    return list(longer_by_id.values())


def relative_costs(trials: Sequence[Trial], data: Path | None = None, cache: Path | None = None) -> dict[str, float]:
    """Return what each trial costs: trial id → floating-point operations of its network, counted without running it.

    The sum covers training (a forward and a backward, which counts twice, of every image and mixed row), validation
    before the first epoch and after each, and the test. It serves to order trials, and to estimate the time left once
    some of them have finished.
    """
    costs = {}
    for cell in same_but_seed(trials):
        cost = _operations(cell[0], data, cache)
        costs |= {trial.id: cost for trial in cell}
    return costs


def _operations(trial: Trial, data: Path | None, cache: Path | None) -> float:
    dataset = open_dataset(trial.dataset, data, cache)
    split = split_of(dataset, PROTOCOLS[trial.protocol], trial.fold, trial.folds)
    images = {name: int((split == name).sum()) for name in ("train", "validation", "test")}
    if trial.arm.loss == PIXELS:
        return float(images["test"])
    pass_flops, _ = _flops(trial, None, cache)
    if trial.arm.at == "floor":
        return pass_flops * (images["validation"] + images["test"])
    rows = 3 * images["train"] * _passes(trial, cache) + images["validation"]
    return pass_flops * (images["validation"] + trial.schedule.epochs * rows + images["test"])


def _flops(trial: Trial, stage: str | None, cache: Path | None) -> tuple[float, float]:
    """Return the operations on one image: all, and those after `stage` (None: the last).

    They are those of backbone and head, or of the head alone on the features of a frozen backbone.
    """
    network, side_px, model = trial.backbone, trial.images.side_px, trial.model

    def count() -> tuple[float, float]:
        body = anatomy.anatomy(network.name, network.options, side_px)
        head = 2 * (body.width * model.dim if model.hidden is None else model.hidden * (body.width + model.dim))
        if model.backbone == "frozen":
            return head, head
        return sum(body.flops(body.last)) + head, body.flops(stage or body.last)[1] + head

    options = network.model_dump(mode="json")["options"]
    sizes = [side_px, model.backbone, model.dim, model.hidden]
    return tuple(
        remembered(cache or default_folder(), ["flops", *_builders(), network.name, options, *sizes, stage], count)
    )


def estimate(
    plan: Plan, records: Sequence[Record] = (), data: Path | None = None, cache: Path | None = None
) -> dict[str, float]:
    """Return the seconds that each trial of a plan will take on one slot of this machine: trial id → seconds.

    They are the median of the cell's finished trials if there are any. Otherwise they are its `relative_costs` at
    the speed of the finished trials of its network, or else of a training step of its network, measured here.
    """
    costs = relative_costs(plan.trials, data, cache)
    done: dict[tuple, list[float]] = defaultdict(list)
    speeds: dict[str, list[float]] = defaultdict(list)
    for record in records:
        done[record.trial.cell].append(record.cost.wall_s)
        if record.id in costs and record.cost.steps:
            speeds[record.trial.backbone.name].append(record.cost.wall_s / costs[record.id])
    seconds = {}
    for cell in same_but_seed(plan.trials):
        trial = cell[0]
        if trial.cell in done:
            each = {t.id: float(np.median(done[trial.cell])) for t in cell}
        else:
            name = trial.backbone.name
            if trial.arm.loss != PIXELS and name not in speeds:
                speeds[name] = [_pace(trial, cache)]
            speed = float(np.median(speeds[name])) if trial.arm.loss != PIXELS else 0.0
            each = {t.id: costs[t.id] * speed for t in cell}
        seconds |= each
    return seconds


def _pace(trial: Trial, cache: Path | None) -> float:
    """Return the seconds of a floating-point operation in training: the median of three steps after a warm-up.

    They are measured once on each machine, because building the network imports timm.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frozen = trial.model.backbone == "frozen"  # a head is so fast that a small batch measures calls, not numbers
    side, size = trial.images.side_px, trial.training.batch_size if frozen else min(trial.training.batch_size, 32)

    def measure() -> float:
        network, row = on_noise(trial)
        network, times = network.to(device).train(), []
        images = torch.rand(size, *row, device=device)
        for _ in range(4):
            began = time.perf_counter()
            network(images).square().sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
        return sorted(times[1:])[1] / size / (3 * _flops(trial, None, cache)[0])

    network, model = trial.backbone.model_dump(mode="json"), trial.model.model_dump(mode="json")
    here = [platform.node(), device_name(device), torch.get_num_threads()]
    return remembered(cache or default_folder(), ["pace", *_builders(), network, model, side, size, *here], measure)


def _passes(trial: Trial, cache: Path | None) -> float:
    """Return the planned forward passes of a step: 1 for a baseline, more for the mixed rows that a level adds."""
    level, rival = trial.arm.metrix, trial.arm.rival
    if level is None and rival is not None:
        return 2.0 if rivals.find(rival.at).mixes_at(**rival.options) == "input" else 1.0
    if level is None or level.at == "embedding":
        return 1.0
    settings = trial.training
    others = settings.batch_size - (settings.examples_per_class if settings.sampler == "balanced" else 1)
    rows = others if level.hardest == "all" else level.hardest or 1
    if level.at == "input":
        return 1.0 + rows
    total, after = _flops(trial, level.stage, cache)
    return 1.0 + rows * after / total
