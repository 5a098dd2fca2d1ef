"""One trial from settings to record: the composition root, the one place that sees the whole pipeline.

    data → embedder → criterion → train → select → test once → record

It knows nothing of distribution: `steps` is a generator that yields after every epoch, so a caller can watch, stop
or time it; `run_trial` drains it in this process.
"""

import gc
import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import baselines
import metrix
from harness.config import Choice, Trial
from harness.data import datasets, scorable, splits
from harness.data.cache import default_folder
from harness.data.datasets import Dataset, DatasetError
from harness.data.images import Images, Originals, contents, open_images
from harness.data.loading import Augmentation
from harness.errors import GridError, UserError
from harness.evaluation import retrieval
from harness.evaluation.analysis import analyse
from harness.evaluation.spread import spread
from harness.fairness import rules
from harness.fairness.ledger import Ledger
from harness.fairness.protocols import FAIR, PROTOCOLS, Protocol
from harness.runs.provenance import provenance, training_versions
from harness.runs.record import Cost, Data, Epoch, Record, Run, least_recall, now, write_json
from harness.runs.storage import StorageError
from harness.streams import stream
from harness.training import checkpoint, memory, models, parallel, pml
from harness.training.chunked import Chunked, out_of_memory
from harness.training.loop import Diverged, Progress, train
from harness.training.models import Embedder, ModelError, Unavailable

EMBEDDING_BATCH = 256
CHUNKS = 4  # in which each device takes a batch that it could not take at once
DRIVER = Path("/proc/driver/nvidia/version")


class Unfair(UserError):
    """A trial that a fairness rule forbids; the message is what the rule found."""


REFUSED = (ModelError, DatasetError, GridError, Unfair)  # settings and data that no retry makes work


@dataclass(frozen=True)
class Sources:
    """Where a trial finds its data and leaves its results, and on what it runs; no part of what it computes.

    `ranks`: GPUs (cuda:0, cuda:1, …) or processes of this machine that share a batch. `chunk_rows`: rows that cross
    the network at a time; None is all, and fewer from where memory runs out. `gpu_share`: how much of a GPU it has to
    itself, for the record: trials that share one are slower.
    """

    out: str | Path
    data: Path | None = None
    cache: Path | None = None
    device: str | None = None
    grid: tuple[tuple[str, Any], ...] = ()
    identity: str | None = None  # which run folder `out` must be; None: the one that is there
    ranks: int = 1
    chunk_rows: int | None = None
    gpu_share: float | None = None


@dataclass(frozen=True)
class Part:
    """The images of one split: their indices in the dataset and their labels."""

    indices: Tensor
    labels: np.ndarray


def run_trial(
    trial: Trial,
    out: str | Path,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    device: str | None = None,
    ranks: int = 1,
) -> Record:
    """Run one trial in this process and return its record (the one that exists, when it is done already).

    `out` is the run folder or a bucket's URL, `data` the dataset's folder, `cache` where decoded images are kept,
    `device` "cpu", "cuda", "cuda:1", … (None: a GPU where there is one), `ranks` the number of GPUs, or of processes
    where there is none, that share each batch. An interrupted trial continues at its last epoch.
    """
    sources = Sources(out, data and Path(data), cache and Path(cache), device, ranks=ranks)
    for _ in steps(trial, sources):
        continue
    return Run(out).record(trial)


def steps(
    trial: Trial, sources: Sources, warn: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr)
) -> Iterator[Progress]:
    """Run a trial, yielding its progress after each epoch; its record exists when this is exhausted.

    Where memory runs out it continues from its last checkpoint, once, with a forward in chunks; where it shares a GPU
    the error is raised, since it may fit on one of its own. `warn` hears of a checkpoint that cannot be read.
    """
    run = Run(sources.out, warn, identity=sources.identity)
    if run.record(trial) is not None:
        return
    if run.identity is None:
        run.prepare()
    if sources.ranks > trial.schedule.batch_size:
        raise parallel.DeviceError(
            f"ranks = {sources.ranks} cannot share a batch: batch_size = {trial.schedule.batch_size}, and each takes "
            "a row at least"
        )
    refuse(evaluator_faults())
    progress = fresh = Progress()
    if trial.arm.at != "floor":
        run.pull_checkpoints(trial)
        fresh.origin = origin_of(trial, sources)
        fresh.chunked = resumable(trial, run, fresh.origin).get("chunked")
    if sources.chunk_rows:
        fresh.chunked = (0, sources.chunk_rows)
    try:
        for progress in attempt(trial, sources, run, fresh):
            yield progress
        return
    except Exception as error:
        if fresh.chunked or not out_of_memory(error) or (sources.gpu_share or 1) < 1:
            raise
    gc.collect()  # here the error is gone, and with the frames of its traceback the network that did not fit
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    chunked = (progress.epoch + 1, max(1, trial.schedule.batch_size // (CHUNKS * sources.ranks)))
    again = Progress(chunked=chunked, origin=fresh.origin, earlier_s=progress.wall_s, peak_gb=progress.peak_gb)
    yield from attempt(trial, sources, run, again)


def kind_of(error: Exception) -> str:
    """What a failure is called in the tables."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, StorageError) or isinstance(error.__cause__, StorageError):
        return "storage"
    if isinstance(error, REFUSED) and not _may_pass(error):
        return "refused"
    return "out of memory" if out_of_memory(error) else "error"


def _may_pass(error: BaseException | None) -> bool:
    """Whether a missing file, a disk or a network was behind an error: another attempt or machine may do better.

    Pillow's complaints about damaged images are OSErrors too, without the number of an error of the system.
    """
    while error is not None:
        if isinstance(error, FileNotFoundError | Unavailable) or (isinstance(error, OSError) and error.errno):
            return True
        error = error.__cause__
    return False


def attempt(trial: Trial, sources: Sources, run: Run, fresh: Progress) -> Iterator[Progress]:
    """`steps`, for a trial without a record; `fresh` is the progress of one that has no checkpoint.

    Its `chunked` has epoch 0 for chunks that were asked for.
    """
    protocol, folder, chunked = PROTOCOLS[trial.protocol], run.checkpoints(trial), fresh.chunked
    if not memory.begin(parallel.devices(sources.ranks, sources.device)[0]):
        fresh.peak_gb = None
    bench = Bench.of(trial, sources, chunked)
    fresh.devices = [device_name(bench.device) + (f" x {sources.ranks}" if sources.ranks > 1 else "")]
    progress, criterion = fresh, None
    seen = TestCurve(folder / "test_curve.json")
    if trial.arm.at != "floor":
        criterion, backward, together = bench.criterion(), Tensor.backward, bench
        with ExitStack() as others:
            if sources.ranks > 1:
                ranks = parallel.Ranks(sources.ranks, bench.device, follow, trial, sources, chunked)
                others.enter_context(ranks).join()
                together = bench.divided()
                backward = parallel.backward(together.model, criterion, ranks.check)
            validate = partial(together.scores, "validation")
            for progress in together.train(criterion, validate, folder, backward=backward, fresh=fresh):
                if protocol.watches_test:
                    weights = checkpoint.state_digest(bench.model.state_dict())
                    seen.add(progress.epoch, weights, lambda: read_test(bench, run).values)
                pushing = time.perf_counter()
                run.push_checkpoints(trial)
                progress.checkpoint_s += time.perf_counter() - pushing
                yield progress
    run.finish(conclude(bench, run, progress, criterion, seen, sources))
    if trial.keep != "weights":
        run.drop_checkpoints(trial)
        seen.path.unlink(missing_ok=True)
        checkpoint.remove(folder)


def follow(rank: int, trial: Trial, sources: Sources, chunked: tuple[int, int] | None) -> None:
    """What ranks 1, 2, … do: the same training, without keeping or scoring anything."""
    bench = Bench.of(trial, sources, chunked, rank).divided()
    criterion, validation = bench.criterion(), bench.part("validation").indices

    def embed_along() -> tuple[dict[str, float], dict[str, float]]:
        if len(validation):
            bench.embed(validation)
        return {}, {}

    backward, folder = parallel.backward(bench.model, criterion), Run(sources.out).checkpoints(trial)
    for _ in bench.train(criterion, embed_along, folder, backward=backward, save=lambda *_: None):
        continue


def conclude(
    bench: "Bench",
    run: Run,
    progress: Progress,
    criterion: nn.Module | None,
    seen: "TestCurve",
    sources: Sources,
) -> Record:
    """Select the epoch, read the test split where the protocol reads it, and say all of it in one record."""
    trial, protocol = bench.trial, PROTOCOLS[bench.trial.protocol]
    chosen = protocol.choose(progress.curve) if progress.curve else None
    by_epoch = {epoch.epoch: epoch.validation for epoch in progress.curve}
    validation = by_epoch[chosen] if chosen else bench.scores("validation")[0]
    tested_epoch = load_best(bench.model, run.checkpoints(trial), chosen, criterion) if chosen else None
    test = read_test(bench, run) if protocol.reads_test else None
    notes = (
        *bench.asked.notes.values(),
        *remarks(bench),
        *of_chunks(bench, progress),
        *of_devices(progress),
        *(keep_test(bench, run, test) if test else ()),
    )
    return Record(
        id=trial.id,
        trial=trial,
        arm=trial.arm.label,
        level=trial.arm.at,
        baseline=trial.arm.baseline,
        grid=dict(sources.grid),
        protocol={"name": protocol.name, "version": protocol.version},
        selected_epoch=chosen,
        validation=validation,
        test=test.values if test else {},
        best_test_epoch=seen.best,
        test_spread=test.spread if test and trial.arm.loss != "pixels" else {},
        test_checkpoints=test.checkpoints if test else 1,
        curve=progress.curve,
        cost=cost(bench, progress),
        data=description(bench, test),
        effective=criterion.effective(bench.model) if trial.arm.metrix else {},
        analysis=analysis(bench, test, criterion) if test and trial.analysis else {},
        provenance={
            **provenance(),
            "device": device_name(bench.device),
            "ranks": sources.ranks,
            "gpu_share": sources.gpu_share,
            "chunk_rows": progress.chunked and progress.chunked[1],
            "batch_norm_rows": None if getattr(bench.model, "exact", True) else bench.model.rows,
            "driver": driver(bench.device),
            "weights": getattr(bench.model, "weights", None),
            "weights_read": getattr(bench.model, "weights_read", None),
            "normalisation": getattr(bench.model, "normalisation", None),
            "initial_weights": getattr(bench.model, "weights_digest", None),
            "tested_weights": checkpoint.state_digest(bench.model.state_dict()),
            "tested_epoch": tested_epoch,
            "evaluator": retrieval.evaluator_digest(),
        },
        notes=notes,
        finished=now(),
    )


def remarks(bench: "Bench") -> tuple[str, ...]:
    """What a row with feature mixing must say of itself."""
    trial, level = bench.trial, bench.trial.arm.metrix
    if level is None or level.at != "feature":
        return ()
    last = bench.model.stages()[-1]
    if level.stage in (None, last):
        if bench.model.mixes_like_embeddings():
            return (f"{last} is followed by linear layers alone: mixing there is mixing un-normalised embeddings",)
        return ()
    norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    if trial.model.norm == "train" and any(isinstance(module, norms) for module in bench.model.modules()):
        return (f"after {level.stage} clean and mixed rows run together, so BatchNorm sees both",)
    return ()


def of_chunks(bench: "Bench", progress: Progress) -> tuple[str, ...]:
    """What a row says of itself when its batches did not fit into memory."""
    if progress.chunked is None:
        return ()
    epoch, rows = progress.chunked
    when = f"at epoch {epoch}" if epoch <= bench.trial.schedule.epochs else "at the test"
    said = f"the forward ran in chunks of {rows} row{'s' * (rows > 1)}"
    if epoch:
        said = f"out of memory {when}; {said}"
    return (said if bench.model.exact else f"{said}, of which BatchNorm took its statistics",)


def of_devices(progress: Progress) -> tuple[str, ...]:
    """What a row must say of itself that was continued elsewhere: its provenance names the last device alone."""
    if len(progress.devices) < 2:
        return ()
    return (f"trained on {', then on '.join(progress.devices)}: its times are those of several devices",)


def analysis(bench: "Bench", test: "TestRead", criterion: nn.Module | None) -> dict[str, Any]:
    """The analysis of the model as it was tested, against the images it was trained on."""
    training = bench.part("train")
    loss = getattr(criterion, "loss", criterion) if bench.trial.arm.metrix else criterion
    return analyse(
        bench.trial.seed,
        test.embeddings.cpu(),
        torch.as_tensor(test.labels),
        bench.embed(training.indices).cpu(),
        torch.as_tensor(training.labels),
        None if loss is None else loss.cpu(),
    )


class Pixels(nn.Flatten):
    """Images (n, 3, side, side) in [0, 1] as vectors, for the floor that compares them by their cosine.

    A black image has no direction: it counts as an evenly grey one, which is what ever darker grey comes to.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Vectors (n, 3·side²), none of them zero."""
        vectors = super().forward(images)
        return torch.where(vectors.any(dim=1, keepdim=True), vectors, 1.0)


@dataclass(frozen=True)
class Bench:
    """What a trial works with, once its settings have become things."""

    trial: Trial
    dataset: Dataset
    split: np.ndarray
    images: Images | Originals
    model: nn.Module
    augmentation: Augmentation
    device: torch.device
    embedding_batch: int = EMBEDDING_BATCH
    asked: scorable.Scores = field(default_factory=partial(scorable.Scores, {}))

    @classmethod
    def of(cls, trial: Trial, sources: Sources, chunked: tuple[int, int] | None = None, rank: int = 0) -> "Bench":
        """Open the data, build the network, choose the device."""
        torch.set_num_threads(trial.training.threads)
        device = parallel.devices(sources.ranks, sources.device)[rank]
        dataset = open_dataset(trial.dataset, sources.data, sources.cache)
        images = images_of(trial, dataset, sources)
        split = split_of(dataset, PROTOCOLS[trial.protocol], trial.fold, trial.folds)
        refuse(rules.over_data(dataset, split))
        scores = scores_of(trial, dataset, split)
        if scores.problems:
            raise DatasetError("\n  ".join(scores.problems))
        model = Pixels() if trial.arm.loss == "pixels" else embedder(trial).to(device)
        bench = cls(trial, dataset, split, images, model, augmentation(trial, model, dataset), device, asked=scores)
        if chunked is None:
            return bench
        _, rows = chunked
        return replace(bench, model=Chunked(model, rows), embedding_batch=min(rows, EMBEDDING_BATCH))

    def divided(self) -> "Bench":
        """The same with its rows and files divided among the ranks, which all must ask for what they ask of it."""
        augmentation = parallel.Divided(**vars(self.augmentation))
        return replace(self, model=parallel.Parallel(self.model), augmentation=augmentation)

    def criterion(self) -> nn.Module:
        """The objective of the trial, on the device."""
        return objective(self.trial, int(self.part("train").labels.max()) + 1).to(self.device)

    def train(
        self, criterion: nn.Module, validate: Callable[[], Any], folder: Path, **how: Any
    ) -> Iterator[Progress]:
        """Train on the images of the training split; `how` as `harness.training.loop.train` has it."""
        training = self.part("train")
        return train(
            self.trial,
            self.model,
            criterion,
            self.images,
            training.indices,
            torch.as_tensor(training.labels),
            self.augmentation,
            validate,
            PROTOCOLS[self.trial.protocol].choose,
            folder,
            self.device,
            **how,
        )

    def part(self, name: str) -> Part:
        """The images of split `name`, labels renumbered 0 … classes−1 (proxies are counted by them)."""
        indices = np.flatnonzero(self.split == name)
        return Part(torch.as_tensor(indices), np.unique(self.dataset.labels[indices], return_inverse=True)[1])

    @torch.inference_mode()
    def embed(self, indices: Tensor) -> Tensor:
        """Embeddings (n, d) float32 of images[indices] on the device, in evaluation mode, without augmentation.

        Raises Diverged where one of them is zero or not finite: nothing can be retrieved with it.
        """
        self.model.eval()
        batches = indices.split(self.embedding_batch)
        embeddings = torch.cat(
            [self.model(self.augmentation.evaluate(self.images.batch(b, self.device))).float() for b in batches]
        )
        largest = embeddings.abs().amax(dim=1)
        if lost := int((~largest.isfinite() | (largest == 0)).sum()):
            raise Diverged(f"{lost} of {len(indices)} embeddings are zero or not finite, so nothing can be scored")
        return embeddings

    def scores(self, name: str) -> tuple[dict[str, float], dict[str, float]]:
        """Scores and spread of a split that is no test split; {} where the protocol keeps no image for it."""
        some = self.part(name)
        if not len(some.indices):
            return {}, {}
        embeddings = self.embed(some.indices)
        values = retrieval.evaluate(embeddings, some.labels, ks=self.asked.ks[name]).values
        return values, spread(embeddings.cpu().numpy()) if self.trial.arm.at != "floor" else {}


class TestCurve:
    """Test scores by epoch, for protocols that record them: written here, read by nobody but the record.

    Each stands beside the digest of its weights: an epoch that is repeated after a crash may end in others.
    """

    def __init__(self, path: Path):
        self.path = path

    def add(self, epoch: int, weights: str, score: Callable[[], dict[str, float]]) -> None:
        """Keep the scores of an epoch, unless those of these weights are there; forget later epochs, which are
        trained again."""
        before = self._read()
        curve = {earlier: row for earlier, row in before.items() if int(earlier) <= epoch}
        if curve.get(str(epoch), {}).get("weights") != weights:
            curve[str(epoch)] = {"weights": weights, "scores": score()}
        if curve != before:
            write_json(self.path, curve)

    @property
    def best(self) -> dict[str, float] | None:
        """{"epoch": …, "R@1": …} of the epoch with the highest test R@1, the earliest on ties; None without any.

        Where R@1 is not among the scores, the least K that is counts in its place.
        """
        curve = {epoch: row["scores"] for epoch, row in self._read().items()}
        if not curve:
            return None
        metric = least_recall(next(iter(curve.values()))) or FAIR.metric
        epoch = max(curve, key=lambda e: (curve[e][metric], -int(e)))
        return {"epoch": int(epoch), **curve[epoch]}

    def _read(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}


@lru_cache(maxsize=1)
def evaluator_faults() -> tuple[rules.Finding, ...]:
    """What the evaluator gets wrong (FAIR-16 to 18); looked at once in a process, in a few tenths of a second."""
    return rules.over_evaluator(retrieval.evaluate, retrieval.conformance)


def refuse(findings: Sequence[rules.Finding]) -> None:
    """Raise Unfair where a finding says that the trial may not run."""
    if wrong := [finding.sentence for finding in findings if finding.severity == "E"]:
        raise Unfair("\n  ".join(wrong))


@lru_cache(maxsize=4)
def _dataset(name: str, options: tuple[tuple[str, Any], ...], data: Path | None, cache: Path | None) -> Dataset:
    return datasets.load(name, data=data, cache=cache, **dict(options))


def open_dataset(choice: Choice, data: Path | None = None, cache: Path | None = None) -> Dataset:
    """The dataset, checked; opened once in a process, whatever the number of trials it runs."""
    return _dataset(choice.name, tuple(sorted(choice.options.items())), data, cache)


def images_of(
    trial: Trial, dataset: Dataset, sources: Sources, announce: Callable[[str], None] | None = None
) -> Images | Originals:
    """The pixels of a trial: decoded ones (now, where no trial has needed them before), or the files themselves."""
    cache = sources.cache or default_folder()
    if trial.images.path == "classical":
        return Originals(dataset, contents(dataset, cache))
    return open_images(dataset, trial.images.stored_px, cache, announce=announce)


def prepare_images(trials: Sequence[Trial], sources: Sources, announce: Callable[[str], None]) -> None:
    """Decode what these trials will need and this machine does not have, so that none of them waits for another.

    `announce` is told how much disk it takes, before it is taken. Raises DatasetError naming every image that cannot
    be read, and CacheError when they do not fit.
    """
    for trial in {(t.dataset.model_dump_json(), t.images): t for t in trials}.values():
        images_of(trial, open_dataset(trial.dataset, sources.data, sources.cache), sources, announce)


def split_of(dataset: Dataset, protocol: Protocol, fold: int | None = None, folds: int | None = None) -> np.ndarray:
    """The split (n,) of a dataset under a protocol: train, test, and validation where something is selected on it.

    Under cross-validation it is that of fold `fold` of 1 … `folds`.
    """
    if protocol.validation_share == 0:
        return splits.no_validation(dataset)
    if folds is not None:
        return splits.fold_validation(dataset, fold, folds)
    return splits.fair_validation(dataset, protocol.validation_share)


def scores_of(trial: Trial, dataset: Dataset, split: np.ndarray) -> scorable.Scores:
    """What a trial will score of a dataset under `split` (n,)."""
    return scorable.scores(dataset, split, trial.ks, PROTOCOLS[trial.protocol].reads_test)


def splits_of(dataset: Dataset, trials: Sequence[Trial]) -> Iterator[tuple[list[Trial], np.ndarray]]:
    """Each split (n,) that these trials of one dataset use, with those that score it alike.

    Raises DatasetError where the dataset cannot be split so.
    """
    users: dict[tuple, list[Trial]] = {}
    for trial in trials:
        users.setdefault((trial.protocol, trial.fold, trial.folds, trial.ks), []).append(trial)
    for (protocol, fold, folds, _), some in users.items():
        yield some, split_of(dataset, PROTOCOLS[protocol], fold, folds)


def embedder(trial: Trial) -> Embedder:
    """The network of a trial; its initial weights depend on seed, dataset and backbone, never on the arm."""
    generator = torch.Generator().manual_seed(
        stream(trial.seed, trial.dataset.name, trial.backbone.name, "initial weights")
    )
    return Embedder(
        trial.backbone.name,
        dim=trial.model.dim,
        pooling=trial.model.pooling,
        norm=trial.model.norm,
        pretrained=trial.backbone.pretrained,
        options=trial.backbone.options,
        mean=trial.backbone.mean,
        std=trial.backbone.std,
        interpolation=trial.backbone.interpolation,
        side_px=trial.images.side_px,
        generator=generator,
    )


def training_classes(trial: Trial, sources: Sources) -> int:
    """How many classes a trial trains on."""
    dataset = open_dataset(trial.dataset, sources.data, sources.cache)
    split = split_of(dataset, PROTOCOLS[trial.protocol], trial.fold, trial.folds)
    return len(np.unique(dataset.labels[split == "train"]))


def objective(trial: Trial, num_classes: int) -> nn.Module:
    """The loss of a trial, in Metrix where its arm says so. Proxies depend on (seed, loss), λ on (seed, "metrix")."""
    arm, seed = trial.arm, trial.seed
    generator = torch.Generator().manual_seed(stream(seed, arm.loss, "proxies"))
    create = pml.create if arm.loss.startswith(pml.PREFIX) else baselines.create
    loss = create(arm.loss, num_classes=num_classes, dim=trial.model.dim, generator=generator, **arm.options)
    if arm.metrix is None:
        return loss
    generator = torch.Generator().manual_seed(stream(seed, "metrix"))
    return metrix.Metrix(loss, **arm.metrix.model_dump(), generator=generator)


def augmentation(trial: Trial, model: nn.Module, dataset: Dataset) -> Augmentation:
    """Crops and flips of the trial, normalised as the weights were trained; plain images in [0, 1] for `pixels`."""
    images = trial.images
    if trial.arm.loss == "pixels":
        return Augmentation(images.side_px, mean=(0.0,) * 3, std=(1.0,) * 3, centre_share=images.centre_share)
    return Augmentation(
        images.side_px,
        mean=model.mean,
        std=model.std,
        interpolation=model.interpolation,
        crop_scale=images.crop_scale,
        crop_ratio=images.crop_ratio,
        flip=dataset.mirrored if images.flip == "auto" else images.flip,
        centre_share=images.centre_share,
    )


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
        "split": split_fingerprint(dataset, split),
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
    found["split"] = split_fingerprint(dataset, split_of(dataset, PROTOCOLS[old.protocol], old.fold, old.folds))
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
        return checkpoint.digest(models.fetch(backbone.name, True, backbone.options, trial.images.side_px))
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


@dataclass(frozen=True)
class TestRead:
    """One reading of the test split: scores, and the embeddings (n, d), ids, labels and roles they come from."""

    result: retrieval.Evaluation
    embeddings: Tensor
    ids: np.ndarray
    labels: np.ndarray
    roles: np.ndarray | None
    checkpoints: int

    @property
    def values(self) -> dict[str, float]:
        return self.result.values

    @property
    def spread(self) -> dict[str, float]:
        return spread(self.embeddings.cpu().numpy())

    @property
    def queries(self) -> np.ndarray:
        """The ids of the images that ask: all of them, or those whose role it is."""
        return self.ids if self.roles is None else self.ids[self.roles == "query"]


def read_test(bench: Bench, run: Run) -> TestRead:
    """Read the test split with the model as it is; the ledger is told first."""
    dataset, trial, test = bench.dataset, bench.trial, bench.part("test")
    entry = Ledger.of(run).read(
        cell="/".join((*trial.cell, trial.repetition)),
        checkpoint=checkpoint.state_digest(bench.model.state_dict()),
        split=split_fingerprint(dataset, bench.split),
        evaluator=retrieval.evaluator_digest(),
    )
    embeddings, ids = bench.embed(test.indices), np.array([dataset.keys[i] for i in test.indices])
    roles = None if dataset.role is None else dataset.role[test.indices.numpy()]
    result = score_test(embeddings, test.labels, ids, roles, bench.asked.ks["test"])
    return TestRead(result, embeddings, ids, test.labels, roles, entry.checkpoints)


def score_test(
    embeddings: np.ndarray | Tensor,
    labels: np.ndarray,
    ids: np.ndarray,
    roles: np.ndarray | None,
    ks: Sequence[int],
) -> retrieval.Evaluation:
    """The scores of test embeddings (n, d): of all among all, or, with roles (n,), of queries in the gallery."""
    if roles is None:
        return retrieval.evaluate(embeddings, labels, ks=ks)
    asked, stock = roles == "query", roles == "gallery"
    return retrieval.evaluate(
        embeddings[asked],
        labels[asked],
        ks=ks,
        gallery=embeddings[stock],
        gallery_labels=labels[stock],
        query_ids=ids[asked],
        gallery_ids=ids[stock],
    )


def keep_test(bench: Bench, run: Run, test: TestRead) -> tuple[str, ...]:
    """Keep what the test read gave beside the record, and return the notes that the row must carry."""
    trial = bench.trial
    if trial.keep != "none":
        run.keep_queries(
            trial,
            embeddings=test.embeddings.cpu().numpy().astype(np.float16),
            ids=test.ids,
            labels=test.labels,
            queries=test.queries[test.result.queries],
            **{f"query {name}": values for name, values in test.result.per_query.items()},
            **({} if test.roles is None else {"roles": test.roles.astype(str)}),
        )
    if test.checkpoints == 1 or PROTOCOLS[trial.protocol].watches_test:
        return ()
    return (f"FAIR-03 test read again for {'/'.join(trial.cell)} {trial.seed_and_fold}",)


def split_fingerprint(dataset: Dataset, split: np.ndarray) -> str:
    """sha256 over sorted (image, class, split): the division that this trial really used."""
    rows = sorted(zip(dataset.keys, (dataset.class_names[i] for i in dataset.labels), split, strict=True))
    return hashlib.sha256("\n".join("\t".join(map(str, row)) for row in rows).encode()).hexdigest()


def description(bench: Bench, test: TestRead | None) -> Data:
    """Sizes and fingerprints of the data that a trial used."""
    dataset, split = bench.dataset, bench.split
    names = [name for name in ("train", "validation", "test") if (split == name).any()]
    return Data(
        index_fingerprint=dataset.index_fingerprint,
        pixel_fingerprint=dataset.pixel_fingerprint,
        content_fingerprint=bench.images.fingerprint,
        source_stamp=dataset.stamp,
        split_fingerprint=split_fingerprint(dataset, split),
        images={name: int((split == name).sum()) for name in names},
        classes={name: len(np.unique(dataset.labels[split == name])) for name in names},
        test_queries=len(test.result.queries) if test else 0,
        test_excluded=test.result.excluded if test else 0,
        test_asked=len(test.queries) if test else 0,
        distinct_classes=len(np.unique(dataset.labels[np.isin(split, names)])),
        passed_over=dataset.passed_over,
    )


def cost(bench: Bench, progress: Progress) -> Cost:
    """Seconds, images, forward passes: rows × the share of the network they cross ÷ batch (FAIR-07)."""
    train_s = sum(epoch.train_s for epoch in progress.curve)
    rows = progress.images_seen + progress.mixed_rows * crossed(bench)
    progress.note_peak(memory.peak_gb(bench.device))
    return Cost(
        train_s=train_s,
        checkpoint_s=progress.checkpoint_s,
        wall_s=progress.wall_s,
        attempt_s=progress.wall_s - progress.earlier_s,
        images_per_s=progress.images_seen / train_s if train_s else None,
        steps=progress.steps,
        images_seen=progress.images_seen,
        forward_passes_per_step=rows / progress.images_seen if progress.images_seen else 0.0,
        peak_gb=progress.peak_gb,
        parameters=sum(p.numel() for p in bench.model.parameters()),
    )


def crossed(bench: Bench) -> float:
    """The share of the network that a mixed row crosses: all of it at the input, none at the embedding."""
    level = bench.trial.arm.metrix
    if level is None or level.at == "embedding":
        return 0.0
    if level.at == "input":
        return 1.0
    stage = level.stage or bench.model.stages()[-1]
    return bench.model.share(stage, bench.trial.images.side_px)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")


def driver(device: torch.device) -> str | None:
    """The version of the GPU's driver as its kernel module states it; None on a processor, "unknown" without one."""
    if device.type != "cuda":
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text(encoding="utf-8")) if DRIVER.exists() else None
    return found.group() if found else "unknown"
