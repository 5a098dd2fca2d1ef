"""The process that runs trials for Tune: `harness.training.trial.steps`, one epoch per step, with its own log."""

import faulthandler
import gc
import math
import os
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TextIO

import torch
from ray import tune

from harness.config import Trial
from harness.fairness.protocols import FAIR
from harness.launch import packing
from harness.launch.cluster import ray
from harness.launch.queue import FINAL
from harness.runs import files, patience
from harness.runs.errors import RunError
from harness.runs.record import now
from harness.runs.run import Run
from harness.training.loop import Progress
from harness.training.trial import kind_of, steps

PUSH_EVERY_S = 10.0


class TrialActor(tune.Trainable):
    """A trial as Tune runs it.

    The first step only reports where the trial runs. Everything that a trial needs is built in its second step, since
    Tune may set an actor up for a trial that another actor runs.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._config = config
        self._steps: Generator[Progress] | None = None
        self._log: Log | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._release()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        spec, sources = self._config["spec"], self._config["sources"]
        trial, run = Trial.model_validate_json(spec["trial"]), Run(sources.out, identity=sources.identity)
        try:
            if self._steps is None or self._log is None:
                return self._begin(run, trial)
            return self._continue(run, trial, self._steps, self._log)
        except BaseException:
            if self._log is not None:
                self._log.write(traceback.format_exc())
            self._release()  # standard error above all: the next trial of this process has another log
            raise

    def _begin(self, run: Run, trial: Trial) -> dict[str, Any]:
        """Start an attempt; return node, name, GPUs and process."""
        spec, sources = self._config["spec"], self._config["sources"]
        self._log = log = Log(run, trial)
        where = _where(spec["share"])
        log.write(f"attempt {spec['attempt']} on {where['name']}, process {os.getpid()}")
        if sources.device is None and 0 < spec["share"] < 1:
            packing.keep_to(spec["share"])
        if gc.get_freeze_count() == 0:
            gc.freeze()  # imported modules stay: walking them after every trial takes a third of a second
        sources = replace(sources, ranks=spec["ranks"], gpu_share=spec["share"] or None)
        sources = replace(sources, processors=spec["processors"])
        self._steps = steps(trial, sources, log.write)
        return where

    def _continue(self, run: Run, trial: Trial, epochs: Iterator[Progress], log: "Log") -> dict[str, Any]:
        """Train for an epoch; return its scores, or those of the record once the trial has finished."""
        try:
            with log.deadline(self._config["epoch_timeout_s"]):
                last = next(epochs, None)
        except Exception as error:
            kind, text = kind_of(error), traceback.format_exc()
            run.fail(trial, kind, f"{type(error).__name__}: {error}", text, self._config["spec"]["attempt"])
            if kind not in FINAL:
                raise
            log.write(text)
            self._release()
            return {"done": True, "failed": kind}
        if last is None:
            record = run.record(trial)
            assert record is not None  # the last step has written it
            log.write("finished: " + "  ".join(f"{name} {value:.4f}" for name, value in record.test.items()))
            self._release()
            metric, score = record.headline
            return {"done": True, "metric": metric, "score": score, "seconds": record.cost.wall_s}
        epoch, start = last.curve[-1], last.curve[0]
        if len(last.curve) == 2 and start.validation and not start.epoch:
            log.write(f"before training  validation {FAIR.metric} {start.validation[FAIR.metric]:.4f}")
        score = epoch.validation.get(FAIR.metric, math.nan)  # protocol paper has no validation
        validated = f"validation {FAIR.metric} {score:.4f}  " if epoch.validation else ""
        log.write(
            f"epoch {epoch.epoch}/{trial.schedule.epochs}  loss {epoch.loss:.6g}  lr {epoch.lr:.3g}  "
            f"{validated}{epoch.train_s:.1f} s"
        )
        return {"epoch": epoch.epoch, "loss": epoch.loss, "score": score}

    def cleanup(self) -> None:
        self._release()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Trials keep their own checkpoints."""

    def load_checkpoint(self, checkpoint: dict | None) -> None:
        """Trials keep their own checkpoints."""

    def _release(self) -> None:
        steps, log, self._steps, self._log = self._steps, self._log, None, None
        if log is None:
            return
        try:
            if steps is not None:
                steps.close()  # other ranks of a data-parallel trial end with it
        finally:
            log.close()
        del steps
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0)


class Log:
    """logs/<trial id>.log: what happened to a trial, attempt by attempt, and the stack of one that hung.

    While it is open it replaces this process's standard error, so that a crash leaves its message there.
    """

    def __init__(self, run: Run, trial: Trial):
        self._run, self._path = run, run.log_path(trial.id)
        self._file: TextIO = patience.retry(self._opened, self._path)
        self._errors = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        self._pushed, self._seconds = 0.0, 0.0
        patience.on_pause.append(self._restart_timer)

    def _opened(self) -> TextIO:
        files.make_folder(self._path.parent)
        return self._path.open("a", buffering=1, encoding="utf-8")

    def write(self, text: str) -> None:
        """Write a line with the time, in UTC. A log that cannot be written stops no trial."""
        try:
            self._file.write(f"{now()}  {text.rstrip()}\n")
            if time.monotonic() - self._pushed > PUSH_EVERY_S:
                self.push()
        except (OSError, RunError):
            pass

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """End this process, its stack in the log, if the block takes longer; this works whatever hangs."""
        self._seconds = seconds
        self._restart_timer()
        try:
            yield
        finally:
            self._seconds = 0.0
            faulthandler.cancel_dump_traceback_later()

    def _restart_timer(self) -> None:
        """Start the deadline again: a write that waits for its storage does not hang."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def push(self) -> None:
        self._pushed = time.monotonic()
        self._run.push_if_there(self._path)

    def close(self) -> None:
        """Give standard error back and store the log."""
        patience.on_pause.remove(self._restart_timer)
        os.dup2(self._errors, 2)
        os.close(self._errors)
        try:
            self.push()
            self._file.close()
        except (OSError, RunError):
            pass


def _where(share: float) -> dict[str, Any]:
    """Return node, its name, process and GPUs of this actor."""
    context, gpus = ray.get_runtime_context(), ray.get_gpu_ids() if share else []
    host = os.uname().nodename
    return {
        "node": context.get_node_id(),
        "name": f"{host} GPU {','.join(map(str, gpus))}" if gpus else host,
        "gpus": ",".join(map(str, gpus)),
        "pid": os.getpid(),
    }
