"""Where a training comes from, and whether its checkpoint may be continued: data, initial weights, code, packages."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from harness.config import Trial
from harness.data import splits
from harness.fairness.protocols import PROTOCOLS
from harness.runs.provenance import training_versions
from harness.runs.record import Epoch, Record, Run
from harness.training import checkpoint, weights
from harness.training.backbones import ModelError
from harness.training.bench import Sources, images_of, open_dataset, split_of


def origin_of(trial: Trial, sources: Sources) -> dict[str, str]:
    """What must stay the same during a training beside its settings: data, initial weights, code and packages.

    split    fingerprint of the division: names, classes and splits of all images
    images   fingerprint of the pixels, or of the files that are decoded anew each time
    weights  sha256 of the weights' file to begin with; "initial" where they are drawn
    and the versions of `harness.runs.provenance.training_versions`
    """
    dataset = open_dataset(trial.dataset, sources.data, sources.cache)
    split = split_of(dataset, PROTOCOLS[trial.protocol], trial.fold, trial.folds)
    return {
        "split": splits.fingerprint(dataset, split),
        "images": images_of(trial, dataset, sources).fingerprint,
        "weights": weights_digest(trial),
        **training_versions(),
    }


def other_origins(records: Iterable[Record], trials: Sequence[Trial], sources: Sources) -> list[str]:
    """In what the data and weights of records differ from those of these trials now: a sentence for each difference.

    Records of datasets that no trial uses are left alone. Pixels are compared only where the stamp of the files
    changed, because they have to be decoded for it.
    """
    planned = {(trial.dataset.name, trial.backbone.name): trial for trial in trials}
    behind: dict[str, dict[str, str]] = {}
    found: Counter[str] = Counter()
    for record in records:
        old, data = record.trial, record.data
        trial = planned.get((old.dataset.name, old.backbone.name))
        if trial is None or trial.dataset != old.dataset:
            continue
        key = repr(
            (old.dataset, old.backbone, old.images, old.protocol, old.fold, old.folds, old.arm.loss == "pixels")
        )
        key += f"{data.source_stamp} {data.content_fingerprint is None}"
        if key not in behind:
            behind[key] = _behind(record, trial, sources)
        was = {
            "split": data.split_fingerprint,
            "images": data.content_fingerprint,
            "weights": record.provenance.get("initial_weights"),
        }
        now_ = {name: value for name, value in behind[key].items() if was[name] is not None}
        found.update(f"{old.dataset.name}: {clause}" for clause in changed(was, now_))
    return [f"{sentence} ({n} record{'s' * (n > 1)})" for sentence, n in found.items()]


def _behind(record: Record, trial: Trial, sources: Sources) -> dict[str, str]:
    """What a record would be made from now, as far as that can be told; as `origin_of`."""
    old, found = record.trial, {}
    dataset = open_dataset(old.dataset, sources.data, sources.cache)
    found["split"] = splits.fingerprint(dataset, split_of(dataset, PROTOCOLS[old.protocol], old.fold, old.folds))
    if record.data.content_fingerprint and record.data.source_stamp != dataset.stamp:
        found["images"] = images_of(old, dataset, sources).fingerprint
    if old.arm.loss != "pixels" and old.backbone == trial.backbone and old.backbone.pretrained:
        with suppress(ModelError):  # where they are not to be had, the plan says so
            found["weights"] = weights_digest(old)
    return found


def weights_digest(trial: Trial) -> str:
    """sha256 of the file that a trial's network begins with, "initial" where its weights are drawn.

    Raises ModelError where the file cannot be read, or is published and not to be had.
    """
    backbone = trial.backbone
    if backbone.pretrained is False:
        return "initial"
    if backbone.pretrained is True:
        return checkpoint.digest(weights.fetch(backbone.name, True, backbone.options, trial.images.side_px))
    try:
        return checkpoint.digest(backbone.pretrained)
    except OSError as error:
        raise ModelError(f"the weights {backbone.pretrained} cannot be read: {error.strerror}") from error


def resumable(trial: Trial, run: Run, origin: Mapping[str, str]) -> dict[str, Any]:
    """What the last checkpoint of a trial says of it, {} where there is none to continue from.

    A checkpoint that cannot be read, lacks the chosen weights or has another `origin` is set aside with a sentence,
    and the trial starts again: continued, it would end in a network that no settings describe.
    """
    folder = run.checkpoints(trial)
    if not (folder / "last.safetensors").exists():
        return {}
    try:
        _, meta = checkpoint.load(folder / "last.safetensors")
        curve = [Epoch(**epoch) for epoch in meta["curve"]]
        if (chosen := PROTOCOLS[trial.protocol].choose(curve)) != curve[-1].epoch:
            chosen_weights(folder, chosen)
    except checkpoint.CheckpointError as error:
        run.set_aside(folder, f"{error}; the trial starts again")
        return {}
    before = meta.get("origin")
    wrong = changed(before, origin) if before else ["it does not say which data, weights and code it comes from"]
    if wrong:
        told = f"the checkpoint of {trial.id} after epoch {curve[-1].epoch}"
        run.set_aside(folder, f"{told} cannot be continued: {'; '.join(wrong)}; the trial starts again")
        return {}
    return meta


ORIGINS = {"split": "the division of the data", "images": "the images", "weights": "the initial weights"}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """In what two origins differ, a clause each, both values named."""
    return [
        f"{ORIGINS.get(name, name)} changed from {_short(before.get(name))} to {_short(value)}"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _short(value: str | None) -> str:
    """A version, or the beginning of a digest."""
    return "not recorded" if value is None else value[:12] if len(value) == 64 else value


def chosen_weights(folder: Path, chosen: int) -> dict[str, Any]:
    """The sections ("model", "criterion") of the chosen epoch's checkpoint; CheckpointError for another epoch's."""
    sections, meta = checkpoint.load(folder / "best.safetensors")
    if meta["epoch"] != chosen:
        raise checkpoint.CheckpointError(f"{folder}/best.safetensors is of epoch {meta['epoch']}, not {chosen}")
    return sections


def load_best(model: nn.Module, folder: Path, chosen: int, criterion: nn.Module | None = None) -> int:
    """Load the weights of the chosen epoch, and what the criterion had learnt by then; return the epoch.

    Raises CheckpointError where the file is of another epoch, or was written before it held the criterion.
    """
    sections = chosen_weights(folder, chosen)
    model.load_state_dict(sections["model"])
    if criterion is not None:
        if "criterion" not in sections:
            raise checkpoint.CheckpointError(f"{folder}/best.safetensors does not hold what the loss had learnt")
        criterion.load_state_dict(sections["criterion"])
    return chosen
