"""One trial, from settings to record: the only file that sees the whole pipeline.

    data → embedder → criterion → train → select → test once → record

It knows nothing about clusters. `steps` is a generator that yields after every epoch, so that a caller can watch,
stop or time it; `run_trial` runs it to its end in this process.
"""

import gc
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.config import PIXELS, Trial
from harness.data.datasets import DatasetError
from harness.errors import GridError
from harness.evaluation.analysis import analyse
from harness.evaluation.editions import evaluator_digest
from harness.fairness.protocols import PROTOCOLS
from harness.runs.errors import StorageError
from harness.runs.provenance import provenance
from harness.runs.record import Cost, Data, Record, now
from harness.runs.run import Run
from harness.training import checkpoint, compiled, memory, parallel
from harness.training import criterion as objective
from harness.training.backbones import ModelError, Unavailable
from harness.training.bench import Bench, Unfair, evaluator_faults, raise_errors
from harness.training.chunked import out_of_memory
from harness.training.devices import DeviceError, device_name, driver_version, rank_devices
from harness.training.loop import Diverged, Progress
from harness.training.origin import load_best, origin_of, resumable
from harness.training.pictures import Sources
from harness.training.ranks import Ranks
from harness.training.scoring import TestCurve, TestRead, keep_test, read_test
from metrix import rivals

CHUNKS = 4  # per device, for a batch that does not fit into memory


REFUSED = (ModelError, DatasetError, GridError, Unfair)  # errors of settings and data, which no retry fixes


def run_trial(
    trial: Trial,
    out: str | Path,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    device: str | None = None,
    ranks: int = 1,
) -> Record:
    """Run one trial in this process and return its record, or return the record it already has.

    `out` is the run folder or a bucket's URL, `data` the dataset's folder, `cache` the folder of decoded images,
    `device` "cpu", "cuda", "cuda:1", … (None: a GPU if there is one), `ranks` the number of GPUs, or of processes
    without a GPU, that share each batch. An interrupted trial continues after its last epoch.
    """
    sources = Sources(out, Path(data) if data else None, Path(cache) if cache else None, device, ranks=ranks)
    for _ in steps(trial, sources):
        continue
    record = Run(out).record(trial)
    assert record is not None
    return record


def steps(
    trial: Trial, sources: Sources, warn: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr)
) -> Generator[Progress]:
    """Run a trial and yield its progress after each epoch. Its record exists when the generator is exhausted.

    If memory runs out, the trial continues once from its last checkpoint, with a forward pass in chunks. If it shares
    a GPU, the error is raised instead, since the trial may fit on a GPU of its own. `warn` is called with a sentence
    about a checkpoint that cannot be continued, and about compiling, which delays the first epoch.
    """
    run = Run(sources.out, warn, identity=sources.identity)
    if run.record(trial) is not None:
        return
    if run.identity is None:
        run.prepare()
    if sources.ranks > trial.schedule.batch_size:
        raise DeviceError(
            f"ranks = {sources.ranks} cannot share a batch: batch_size = {trial.schedule.batch_size}, and each needs "
            "at least one row"
        )
    if sources.ranks > 1 and trial.model.backbone == "frozen":
        raise DeviceError(f"ranks = {sources.ranks}: a frozen backbone trains only a head, on one device; use 1")
    _prepare_compiling(trial, sources, warn)
    raise_errors(evaluator_faults())
    progress = fresh = Progress()
    if trial.arm.at != "floor":
        run.pull_checkpoints(trial)
        fresh.origin = origin_of(trial, sources)
        fresh.chunked = resumable(trial, run, fresh.origin).get("chunked")
    if sources.chunk_rows:
        fresh.chunked = (0, sources.chunk_rows)
    try:
        for progress in _train_and_test(trial, sources, run, fresh):
            yield progress
        return
    except Exception as error:
        if fresh.chunked or not out_of_memory(error) or (sources.gpu_share or 1) < 1:
            raise
    gc.collect()  # here the error is gone, and its traceback no longer holds the network that did not fit
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    chunked = (progress.epoch + 1, max(1, trial.schedule.batch_size // (CHUNKS * sources.ranks)))
    again = Progress(chunked=chunked, origin=fresh.origin, earlier_s=progress.wall_s, peak_gb=progress.peak_gb)
    yield from _train_and_test(trial, sources, run, again)


def _prepare_compiling(trial: Trial, sources: Sources, warn: Callable[[str], None]) -> None:
    """Check that the network can be compiled here if the trial wants it. Raise DeviceError if it cannot."""
    settings = trial.training
    if settings.compile == "none":
        return
    if trial.model.backbone == "frozen":
        raise DeviceError(f"training.compile is {settings.compile}, but the backbone is frozen: choose none")
    if sources.ranks > 1:
        raise DeviceError(
            f"training.compile is {settings.compile}, which works on one device, but ranks = {sources.ranks}: use 1, "
            "or choose none"
        )
    if problem := compiled.problem(settings, rank_devices(1, sources.device)[0].type):
        raise DeviceError(problem)
    compiled.prepare(settings, sources.cache)
    if trial.arm.at != "floor":
        warn("the first epoch takes minutes longer: torch compiles the network")


def kind_of(error: Exception) -> str:
    """Return the kind of a failure as tables name it."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, StorageError) or isinstance(error.__cause__, StorageError):
        return "storage"
    if isinstance(error, REFUSED) and not _is_temporary(error):
        return "refused"
    return "out of memory" if out_of_memory(error) else "error"


def _is_temporary(error: BaseException | None) -> bool:
    """Return whether a missing file, a disk or a network caused an error, so that a retry elsewhere may succeed.

    Pillow raises OSError for damaged images too, but without the error number of the system.
    """
    while error is not None:
        if isinstance(error, FileNotFoundError | Unavailable) or (isinstance(error, OSError) and error.errno):
            return True
        error = error.__cause__
    return False


def _train_and_test(trial: Trial, sources: Sources, run: Run, fresh: Progress) -> Iterator[Progress]:
    """Train and test a trial that has no record; `fresh` is its progress if it has no checkpoint.

    `fresh.chunked` has epoch 0 if the user requested the chunks.
    """
    protocol, folder, chunked = PROTOCOLS[trial.protocol], run.checkpoints(trial), fresh.chunked
    if not memory.begin(rank_devices(sources.ranks, sources.device)[0]):
        fresh.peak_gb = None
    bench = Bench.of(trial, sources, chunked)
    fresh.devices = [device_name(bench.device) + (f" x {sources.ranks}" if sources.ranks > 1 else "")]
    progress, criterion = fresh, None
    test_curve = TestCurve(folder / "test_curve.json")
    if trial.arm.at != "floor":
        criterion, backward, shared = bench.criterion(), Tensor.backward, bench
        with ExitStack() as stack:
            if sources.ranks > 1:
                ranks = Ranks(sources.ranks, bench.device, train_rank, trial, sources, chunked)
                stack.enter_context(ranks).join()
                shared = bench.divided()
                backward = parallel.backward(shared.model, criterion, ranks.check)
            validate = partial(shared.scores, "validation")
            for progress in shared.train(criterion, validate, folder, backward=backward, fresh=fresh):
                if protocol.watches_test:
                    weights = checkpoint.state_digest(bench.model.state_dict())
                    test_curve.add(progress.epoch, weights, lambda: read_test(bench, run).values)
                if progress.saved == progress.epoch:
                    pushing = time.perf_counter()
                    run.push_checkpoints(trial)
                    progress.checkpoint_s += time.perf_counter() - pushing
                yield progress
    run.finish(_record(bench, run, progress, criterion, test_curve, sources))
    if trial.keep != "weights":
        run.drop_checkpoints(trial)
        test_curve.path.unlink(missing_ok=True)
        checkpoint.remove(folder)


def train_rank(rank: int, trial: Trial, sources: Sources, chunked: tuple[int, int] | None) -> None:
    """Train as rank 1, 2, …: like rank 0, but without saving or scoring anything."""
    bench = Bench.of(trial, sources, chunked, rank).divided()
    criterion, validation = bench.criterion(), bench.split_images("validation").indices

    def embed_validation() -> tuple[dict[str, float], dict[str, float]]:
        if len(validation):
            bench.embed(validation)
        return {}, {}

    backward, folder = parallel.backward(bench.model, criterion), Run(sources.out).checkpoints(trial)
    for _ in bench.train(criterion, embed_validation, folder, backward=backward, save=lambda *_: None):
        continue


def _record(
    bench: Bench,
    run: Run,
    progress: Progress,
    criterion: objective.Criterion | None,
    test_curve: TestCurve,
    sources: Sources,
) -> Record:
    """Select the epoch, read the test split if the protocol reads it, and return the record."""
    trial, protocol = bench.trial, PROTOCOLS[bench.trial.protocol]
    chosen = protocol.choose(progress.curve) if progress.curve else None
    by_epoch = {epoch.epoch: epoch.validation for epoch in progress.curve}
    validation = by_epoch[chosen] if chosen else bench.scores("validation")[0]
    tested_epoch = load_best(bench.model, run.checkpoints(trial), chosen, criterion) if chosen else None
    test = read_test(bench, run) if protocol.reads_test else None
    notes = (
        *bench.scored.notes.values(),
        *_notes_on_mixing(bench),
        *(objective.warnings(criterion) if criterion else ()),
        *_notes_on_chunks(bench, progress),
        *_notes_on_compiling(bench, progress),
        *_notes_on_devices(progress),
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
        best_test_epoch=test_curve.best,
        test_spread=test.spread if test and trial.arm.loss != PIXELS else {},
        test_checkpoints=test.checkpoints if test else 1,
        curve=tuple(progress.curve),
        cost=_cost(bench, progress),
        data=_data(bench, test),
        effective=objective.effective(criterion, bench.model) if criterion else {},
        counted=objective.counted(criterion) if criterion else {},
        analysis=_analysis(bench, test, criterion) if test and trial.analysis else {},
        provenance={
            **provenance(),
            "device": device_name(bench.device),
            "ranks": sources.ranks,
            "gpu_share": sources.gpu_share,
            "chunk_rows": progress.chunked and progress.chunked[1],
            "batch_norm_rows": None if getattr(bench.model, "exact", True) else getattr(bench.model, "rows", None),
            "driver": driver_version(bench.device),
            "weights": getattr(bench.model, "weights", None),
            "weights_read": getattr(bench.model, "weights_read", None),
            "normalisation": getattr(bench.model, "normalisation", None),
            "initial_weights": getattr(bench.model, "weights_digest", None),
            "tested_weights": checkpoint.state_digest(bench.model.state_dict()),
            "tested_epoch": tested_epoch,
            "evaluator": evaluator_digest(),
        },
        notes=notes,
        finished=now(),
    )


def _notes_on_mixing(bench: Bench) -> tuple[str, ...]:
    """Return the notes that a row with feature mixing needs."""
    trial, level = bench.trial, bench.trial.arm.metrix
    if level is None or level.at != "feature":
        return ()
    last = bench.network.stages()[-1]
    if level.stage in (None, last):
        if bench.network.mixes_like_embeddings():
            return (f"only linear layers follow {last}: mixing there equals mixing unnormalised embeddings",)
        return ()
    norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    if trial.model.norm == "train" and any(isinstance(module, norms) for module in bench.model.modules()):
        return (f"after {level.stage} clean and mixed rows run together, so BatchNorm sees both",)
    return ()


def _notes_on_chunks(bench: Bench, progress: Progress) -> tuple[str, ...]:
    """Return the note of a row whose batches did not fit into memory."""
    if progress.chunked is None:
        return ()
    epoch, rows = progress.chunked
    when = f"at epoch {epoch}" if epoch <= bench.trial.schedule.epochs else "at the test"
    note = f"the forward ran in chunks of {rows} row{'s' * (rows > 1)}"
    if epoch:
        note = f"out of memory {when}; {note}"
    return (
        note if getattr(bench.model, "exact", True) else f"{note}, and BatchNorm took its statistics from each chunk",
    )


def _notes_on_compiling(bench: Bench, progress: Progress) -> tuple[str, ...]:
    """Return the note of a row whose network was to be compiled and ran as it is."""
    trial, level = bench.trial, bench.trial.arm.metrix
    if trial.training.compile == "none" or trial.arm.at == "floor":
        return ()
    if progress.chunked is not None:
        return ("in chunks the network ran uncompiled",)
    if level is not None and level.at == "feature" and level.stage not in (None, bench.network.stages()[-1]):
        return (f"with rows mixed at {level.stage} the network ran uncompiled",)
    return ()


def _notes_on_devices(progress: Progress) -> tuple[str, ...]:
    """Return the note of a row that was trained on several devices: its provenance names only the last one."""
    if len(progress.devices) < 2:
        return ()
    return (f"trained on {', then on '.join(progress.devices)}: its times are those of several devices",)


def _analysis(bench: Bench, test: TestRead, criterion: objective.Criterion | None) -> dict[str, Any]:
    """Analyse the tested model against the images it was trained on."""
    training = bench.split_images("train")
    loss = objective.loss_of(criterion) if criterion else None
    return analyse(
        bench.trial.seed,
        test.embeddings.cpu(),
        torch.as_tensor(test.labels),
        bench.embed(training.indices).cpu(),
        torch.as_tensor(training.labels),
        loss.cpu() if loss else None,
    )


def _data(bench: Bench, test: TestRead | None) -> Data:
    """Return sizes and fingerprints of the data that a trial used."""
    dataset, split = bench.dataset, bench.split
    names = [name for name in ("train", "validation", "test") if (split == name).any()]
    return Data(
        index_fingerprint=dataset.index_fingerprint,
        pixel_fingerprint=dataset.pixel_fingerprint,
        content_fingerprint=bench.images.fingerprint,
        source_stamp=dataset.stamp,
        split_fingerprint=bench.split_fingerprint,
        images={name: int((split == name).sum()) for name in names},
        classes={name: len(np.unique(dataset.labels[split == name])) for name in names},
        test_queries=len(test.result.queries) if test else 0,
        test_excluded=test.result.excluded if test else 0,
        test_asked=len(test.queries) if test else 0,
        distinct_classes=len(np.unique(dataset.labels[np.isin(split, names)])),
        passed_over=dataset.passed_over,
    )


def _cost(bench: Bench, progress: Progress) -> Cost:
    """Return the cost; forward passes per step are rows × the share of the network they cross ÷ batch (FAIR-07)."""
    train_s = sum(epoch.train_s for epoch in progress.curve)
    rows = progress.images_seen + progress.mixed_rows * _crossed_share(bench)
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


def _crossed_share(bench: Bench) -> float:
    """Return the share of the network that a mixed row crosses: 1 at the input, 0 at the embedding."""
    level, rival = bench.trial.arm.metrix, bench.trial.arm.rival
    if level is None and rival is not None:
        return float(rivals.find(rival.at).mixes_at(**rival.options) == "input")
    if level is None or level.at == "embedding":
        return 0.0
    if level.at == "input":
        return 1.0
    stage = level.stage or bench.network.stages()[-1]
    return bench.network.share(stage, bench.trial.images.side_px)
