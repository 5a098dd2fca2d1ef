"""The trained embedder of a finished trial, with the transform of its test images.

    embedder = harness.load("results/runs/quick", "contrastive-s0")
    embeddings = embedder.embed(["a.jpg", "b.jpg"])

It needs the run folder, in which the trial kept its weights (keep: weights). It needs neither the data of the trial
nor the weights that it began with, unless its backbone was frozen and so is not in the run folder.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.config import Backbone, Trial
from harness.data.ahead import read_ahead
from harness.data.datasets import DatasetError
from harness.data.images import resized
from harness.data.loading import Augmentation
from harness.data.loose import open_image
from harness.errors import UserError, unknown
from harness.runs.errors import RunError
from harness.runs.provenance import provenance
from harness.runs.record import Record
from harness.runs.run import Run
from harness.training import checkpoint
from harness.training.backbones import ModelError
from harness.training.devices import rank_devices
from harness.training.embedder import Embedder
from harness.training.network import build_embedder, evaluation
from harness.training.origin import weights_digest
from harness.training.pictures import EMBEDDING_BATCH

Picture = str | Path | Image.Image
MOST_LISTED = 20  # trials in a message


class NotKept(UserError):
    """Raised for a trial that left no network to load; the message says why, and what to do."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained embedder: images in, unit vectors out.

    network  in evaluation mode, on `device`
    record   of the trial: its settings, scores and provenance
    """

    network: Embedder
    record: Record
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """Return unit embeddings (n, dim) float32, on the device, of images (n, 3, side, side) from `transform`."""
        with torch.no_grad():
            return self.network(images.to(self.device))

    def transform(self, image: Picture) -> Tensor:
        """Return an image as the trial saw its test images: (3, side, side) float32, resized, cropped, normalised.

        Raises DatasetError naming a file that cannot be read.
        """
        return self._prepared([self._pixels(image)])[0]

    def embed(
        self,
        images: Iterable[Picture],
        *,
        batch: int = EMBEDDING_BATCH,
        progress: Callable[[int, int], None] | None = None,
        unreadable: Callable[[int, str], None] | None = None,
    ) -> np.ndarray:
        """Return unit embeddings (n, dim) float32 of image files, or of images that Pillow opened.

        batch       how many go through the network at a time
        progress    called with (embedded images, all images)
        unreadable  called with the place and the reason of an image that cannot be read; its row is NaN. None:
                    DatasetError is raised for the first one
        """
        images = list(images)
        embeddings = np.full((len(images), self.network.dim), np.nan, np.float32)
        results = read_ahead(self._pixels_or_error, images)
        for start in range(0, len(images), batch):
            pixels = {}
            for place, result in enumerate(islice(results, batch), start):
                if isinstance(result, Tensor):
                    pixels[place] = result.to(self.device)
                elif unreadable is None:
                    raise result
                else:
                    unreadable(place, str(result))
            if pixels:
                embeddings[list(pixels)] = self(self._prepared(list(pixels.values()))).cpu().numpy()
            if progress is not None:
                progress(min(start + batch, len(images)), len(images))
        return embeddings

    @property
    def about(self) -> dict[str, Any]:
        """What embeddings of it are, in one line: the trial, its tested weights and the program."""
        origin = provenance()
        return {
            "trial": self.record.id,
            "weights": self.record.provenance.get("tested_weights"),
            "dim": self.network.dim,
            "program": f"metrix-bench {origin['packages']['metrix-bench']}",
        }

    @property
    def augmentation(self) -> Augmentation:
        """The evaluation of the trial, without the crops and flips of its training."""
        return evaluation(self.record.trial, self.network)

    def _pixels(self, image: Picture) -> Tensor:
        """Return what the trial would keep of an image until it is normalised, (3, h, w) uint8."""
        opened, images = open_image(image), self.record.trial.images
        if images.path == "classical":
            return self.augmentation.centred(opened.convert("RGB"))
        return torch.from_numpy(resized(opened, images.stored_px))

    def _pixels_or_error(self, image: Picture) -> Tensor | DatasetError:
        try:
            return self._pixels(image)
        except DatasetError as error:
            return error

    def _prepared(self, pixels: list[Tensor]) -> Tensor:
        """Return images of `_pixels` as the network takes them, (n, 3, side, side) float32 on their device."""
        if self.record.trial.images.path == "classical":  # they are cropped
            return replace(self.augmentation, centre_share=1.0).evaluate(torch.stack(pixels))
        return self.augmentation.evaluate(pixels)


def load(run: str | Path | Run, trial: str, device: str | None = None, weights: str | Path | None = None) -> Trained:
    """Return the trained embedder of a finished trial.

    run      run folder, or the URL of a bucket
    trial    its id, arm and seed ("contrastive+input-s0"), or any part of its id that no other has
    device   "cpu", "cuda", "cuda:1", …; by default a GPU if there is one
    weights  for a trial whose backbone was frozen: the file of that backbone's weights, if it is no longer where the
             trial found it

    Raises UserError if there is no such trial, if it kept no network, or if its weights are not those it was tested
    with.
    """
    source = run if isinstance(run, Run) else Run(run)
    if not source.exists():
        raise RunError(f"{source.place} is not a run folder: it has no records/")
    where = rank_devices(1, device)[0]
    record = find_record(source, trial)
    state = _kept_state(source, record)
    if record.trial.model.backbone == "frozen":
        network = build_embedder(_with_backbone(record, pretrained=_frozen_weights(record, weights)))
        state = {f"backbone.{name}": tensor for name, tensor in network.backbone.state_dict().items()} | state
    elif weights is not None:
        raise UserError(f"weights {weights}: {record.id} has all of its weights in the run folder; leave them out")
    else:
        network = build_embedder(_with_backbone(record, pretrained=False))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        timm = record.provenance.get("packages", {}).get("timm", "another version")
        raise ModelError(
            f"the weights of {record.id} do not fit the network that timm builds here; it was trained with timm "
            f"{timm} ({' '.join(str(error).split())[:300]})"
        ) from error
    return Trained(network.requires_grad_(False).eval().to(where), record, where)


def find_record(run: Run, trial: str) -> Record:
    """Return the one record that `trial` names: by its id, by arm and seed, or by a part of its id.

    Raises UserError with the trials to choose from, and NotKept for a trial that failed.
    """
    records = run.records()
    for matches in (
        [record for record in records if record.id == trial],
        [record for record in records if f"{record.arm}-{record.trial.repetition}" == trial],
        [record for record in records if trial in record.id],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = "\n  ".join(record.id for record in matches[:MOST_LISTED])
            raise UserError(f"{trial!r} matches {len(matches)} trials of {run.place}; choose one of\n  {ids}")
    for failure in run.failures():
        if trial in (failure.id, f"{failure.arm}-{failure.trial.repetition}") or trial in failure.id:
            raise NotKept(f"{failure.id} has failed ({failure.kind}: {failure.reason}), so it has no network")
    if not records:
        raise UserError(f"{run.place} has no finished trial")
    names = {record.id for record in records} | {f"{record.arm}-{record.trial.repetition}" for record in records}
    raise UserError(f"{run.place} has {unknown('finished trial', trial, names)}")


def _kept_state(run: Run, record: Record) -> dict[str, Tensor]:
    """Return the tested weights of a trial, by name. Raise NotKept or CheckpointError if they are not there."""
    again = "run it again with --set keep=weights and --out ANOTHER_FOLDER"
    if record.level == "floor":
        raise NotKept(f"{record.id} is a floor: nothing was trained, so there is no network to load")
    if record.trial.keep != "weights":
        raise NotKept(f"{record.id} did not keep its network (keep: {record.trial.keep}); {again}")
    run.pull_checkpoints(record.trial)
    path = run.checkpoints(record.trial) / "best.safetensors"
    if not path.exists():
        raise NotKept(f"{run.where(path)} is missing: the run was copied without checkpoints/, or they were deleted")
    sections, meta = checkpoint.load(path)
    digest, tested = checkpoint.state_digest(sections["model"]), record.provenance.get("tested_weights")
    if tested not in (None, digest):
        raise checkpoint.CheckpointError(
            f"{path} contains weights {digest[:12]}, but {str(tested)[:12]} were tested: it belongs to another run"
        )
    if meta["epoch"] != record.selected_epoch:
        raise checkpoint.CheckpointError(f"{path} is of epoch {meta['epoch']}, not {record.selected_epoch}")
    return sections["model"]


def _with_backbone(record: Record, pretrained: bool | str) -> Trial:
    """Return the trial of a record with these initial weights, its images prepared as it prepared them.

    The recorded mean, standard deviation and interpolation count, because timm's own may change.
    """
    recorded = record.provenance.get("normalisation") or {}
    known = {name: recorded[name] for name in ("mean", "std", "interpolation") if name in recorded}
    backbone = {**record.trial.backbone.model_dump(), **known, "pretrained": pretrained}
    return record.trial.model_copy(update={"backbone": Backbone(**backbone)})


def _frozen_weights(record: Record, weights: str | Path | None) -> bool | str:
    """Return the weights of a frozen backbone, True for timm's published ones or a file, after comparing digests."""
    chosen: Any = record.trial.backbone.pretrained if weights is None else str(weights)
    name = "timm's published weights" if chosen is True else f"the weights {chosen}"
    advice = "name the file with weights=FILE (--weights FILE)"
    try:
        digest = weights_digest(_with_backbone(record, chosen))
    except ModelError as error:
        raise type(error)(f"{record.id} needs the weights of its frozen backbone: {error}; {advice}") from error
    recorded = record.provenance.get("initial_weights")
    if digest != recorded:
        raise ModelError(
            f"{record.id} was trained on weights with sha256 {recorded}, but {name} have {digest}; {advice}"
        )
    return chosen
