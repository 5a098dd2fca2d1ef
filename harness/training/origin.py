"""The origin of a training (data, initial weights, code, packages), and whether its checkpoint may be continued."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from harness.config import PIXELS, Trial
from harness.data import splits
from harness.fairness.protocols import PROTOCOLS
from harness.runs.provenance import training_versions
from harness.runs.record import Epoch, Record
from harness.runs.run import Run
from harness.training import checkpoint, weights
from harness.training.backbones import ModelError
from harness.training.bench import split_of
from harness.training.features import Features
from harness.training.pictures import Sources, images_of, open_dataset, pictures_of


def origin_of(trial: Trial, sources: Sources) -> dict[str, str]:
    """Return what must stay the same during a training, apart from its settings.

    split    fingerprint of the split: names, classes and splits of all images
    images   fingerprint of the pixels, or of the files if they are decoded each time
    weights  sha256 of the file of initial weights; "initial" if they are random
    and the versions of `harness.runs.provenance.training_versions`
    """
    dataset = open_dataset(trial.dataset, sources.data, sources.cache)
    split = split_of(dataset, PROTOCOLS[trial.protocol], trial.fold, trial.folds)
    pictures = pictures_of(trial, dataset, sources)
    return {
        "split": splits.fingerprint(dataset, split),
        "images": pictures.fingerprint,
        "weights": pictures.about["weights_digest"] if isinstance(pictures, Features) else weights_digest(trial),
        **training_versions(),
    }


def other_origins(records: Iterable[Record], trials: Sequence[Trial], sources: Sources) -> list[str]:
    """Return how data and weights of records differ from those that these trials would use now, as sentences.

    Records of datasets that no trial uses are ignored. Pixels are compared only if the stamp of the files changed,
    because comparing them means decoding them.
    """
    planned = {(trial.dataset.name, trial.backbone.name): trial for trial in trials}
    origins: dict[str, dict[str, str]] = {}  # by all that they depend on
    counts: Counter[str] = Counter()
    for record in records:
        old, data = record.trial, record.data
        trial = planned.get((old.dataset.name, old.backbone.name))
        if trial is None or trial.dataset != old.dataset:
            continue
        key = repr((old.dataset, old.backbone, old.images, old.protocol, old.fold, old.folds, old.arm.loss == PIXELS))
        key += f"{data.source_stamp} {data.content_fingerprint is None}"
        if key not in origins:
            origins[key] = _origin_now(record, trial, sources)
        before = {
            "split": data.split_fingerprint,
            "images": data.content_fingerprint,
            "weights": record.provenance.get("initial_weights"),
        }
        now = {name: value for name, value in origins[key].items() if before[name] is not None}
        counts.update(f"{old.dataset.name}: {clause}" for clause in _changes(before, now))
    return [f"{sentence} ({n} record{'s' * (n > 1)})" for sentence, n in counts.items()]


def _origin_now(record: Record, trial: Trial, sources: Sources) -> dict[str, str]:
    """Return the origin that a record would have now, as `origin_of`, without what cannot be determined."""
    old, origin = record.trial, {}
    dataset = open_dataset(old.dataset, sources.data, sources.cache)
    origin["split"] = splits.fingerprint(dataset, split_of(dataset, PROTOCOLS[old.protocol], old.fold, old.folds))
    if record.data.content_fingerprint and record.data.source_stamp != dataset.stamp:
        origin["images"] = images_of(old, dataset, sources).fingerprint
    if old.arm.loss != PIXELS and old.backbone == trial.backbone and old.backbone.pretrained:
        with suppress(ModelError):  # the plan reports weights that are unavailable
            origin["weights"] = weights_digest(old)
    return origin


def weights_digest(trial: Trial) -> str:
    """Return the sha256 of a trial's file of initial weights, or "initial" if they are random.

    Raises Unavailable if the file cannot be read or published weights cannot be fetched.
    """
    backbone = trial.backbone
    if backbone.pretrained is False:
        return "initial"
    if backbone.pretrained is True:
        file = weights.fetch(backbone.name, True, backbone.options, trial.images.side_px)
        assert file is not None  # published weights are a file
        return checkpoint.digest(file)
    return weights.digest(backbone.pretrained)


def resumable(trial: Trial, run: Run, origin: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata of a trial's last checkpoint, or {} if there is none to continue from.

    A checkpoint that cannot be read, lacks the chosen weights or has another `origin` is set aside with a warning,
    and the trial starts again. Continuing it would give a network that no settings describe.
    """
    folder = run.checkpoints(trial)
    if not (folder / "last.safetensors").exists():
        return {}
    try:
        sections, meta = checkpoint.load(folder / "last.safetensors")
        curve = [Epoch(**epoch) for epoch in meta["curve"]]
        chosen = PROTOCOLS[trial.protocol].choose(curve)
        if chosen != curve[-1].epoch and "chosen" not in sections:
            _chosen_weights(folder, chosen)
    except checkpoint.CheckpointError as error:
        run.set_aside(folder, f"{error}; the trial starts again")
        return {}
    before = meta.get("origin")
    differences = _changes(before, origin) if before else ["it does not state its data, weights and code"]
    if differences:
        name = f"the checkpoint of {trial.id} after epoch {curve[-1].epoch}"
        run.set_aside(folder, f"{name} cannot be continued: {'; '.join(differences)}; the trial starts again")
        return {}
    return meta


ORIGINS = {"split": "the split of the data", "images": "the images", "weights": "the initial weights"}


def _changes(before: Mapping[str, str | None], now: Mapping[str, str]) -> list[str]:
    """Return the differences between two origins, one clause each, with both values."""
    return [
        f"{ORIGINS.get(name, name)} changed from {_short(before.get(name))} to {_short(value)}"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _short(value: str | None) -> str:
    """Return a version, or the first characters of a digest."""
    return "not recorded" if value is None else value[:12] if len(value) == 64 else value


def _chosen_weights(folder: Path, chosen: int) -> dict[str, Any]:
    """Return the sections "model" and "criterion" of the chosen epoch; CheckpointError for another epoch's file."""
    sections, meta = checkpoint.load(folder / "best.safetensors")
    if meta["epoch"] != chosen:
        raise checkpoint.CheckpointError(f"{folder}/best.safetensors is of epoch {meta['epoch']}, not {chosen}")
    return sections


def load_best(model: nn.Module, folder: Path, chosen: int, criterion: nn.Module | None = None) -> int:
    """Load the weights of the chosen epoch into `model`, and its proxies into `criterion`; return the epoch.

    Raises CheckpointError if the file is of another epoch, or has no state of the criterion (older files).
    """
    sections = _chosen_weights(folder, chosen)
    model.load_state_dict(sections["model"])
    if criterion is not None:
        if "criterion" not in sections:
            raise checkpoint.CheckpointError(f"{folder}/best.safetensors does not contain the state of the loss")
        criterion.load_state_dict(sections["criterion"])
    return chosen
