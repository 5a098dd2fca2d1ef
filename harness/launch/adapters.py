"""Ray Tune's interfaces, as thin adapters of a `Dispatcher`.

Tune is handed one trial at a time, when there is room for it: order, retries and nodes are decided by the dispatcher.
Tune's own checkpoints, result files and restore are not used.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from harness import registry
from harness.launch.actor import TrialActor
from harness.launch.dispatch import Dispatcher
from harness.launch.scratch import scratch
from harness.training.trial import Sources

BATCH = 2000  # trials of one Tune experiment, whose controller looks at all of them in every step

TRACKERS = {  # ray's own callbacks: module, class, arguments
    "tensorboard": ("ray.tune.logger", "TBXLoggerCallback", {}),
    "wandb": ("ray.air.integrations.wandb", "WandbLoggerCallback", {"project": "metrix-bench"}),
    "mlflow": ("ray.air.integrations.mlflow", "MLflowLoggerCallback", {"experiment_name": "metrix-bench"}),
}


def trackers(names: Sequence[str]) -> list[tune.Callback]:
    """Return callbacks that show learning curves elsewhere while trials run; no number is read back from them.

    Raises RegisterError for an unknown name, and for one whose package is not installed.
    """
    callbacks = []
    for name in names:
        if name not in TRACKERS:
            raise registry.RegisterError(registry.unknown("tracker", name, TRACKERS))
        module, kind, arguments = TRACKERS[name]
        try:
            callbacks.append(getattr(import_module(module), kind)(**arguments))
        except (ImportError, RuntimeError) as error:
            raise registry.RegisterError(
                f"tracker {name} is not installed: pip install '.[trackers]' ({error})"
            ) from error
    return callbacks


def run_experiment(
    dispatcher: Dispatcher,
    sources: Sources,
    epoch_timeout_s: float,
    track: Sequence[tune.Callback] = (),
    track_in: Path | None = None,
) -> None:
    """Run one Tune experiment, which ends when the dispatcher has no more trials or BATCH of them have run.

    `track_in` is the folder of the trackers; without one, Tune's files are scratch files.
    """
    with nullcontext(track_in) if track_in else scratch("tune") as place:
        tune.Tuner(
            tune.with_resources(TrialActor, _placement),
            param_space={"sources": sources, "epoch_timeout_s": epoch_timeout_s},
            tune_config=tune.TuneConfig(
                search_alg=Feeder(dispatcher),
                scheduler=InTurn(),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.config["spec"]["id"],
            ),
            run_config=tune.RunConfig(
                name=f"grid-{time.time_ns()}",
                storage_path=str(place),
                verbose=0,
                callbacks=[Messenger(dispatcher), *track],
                failure_config=tune.FailureConfig(max_failures=0),  # the queue retries
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


def _placement(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    spec = config["spec"]
    where: dict[str, Any] = {}
    if spec["selector"]:
        where["bundle_label_selector"] = [{"ray.io/node-id": spec["selector"]}]
    return tune.PlacementGroupFactory([spec["bundle"]], **where)


class Feeder(Searcher):
    """The searcher that hands Tune the next trial when there is room for it."""

    def __init__(self, dispatcher: Dispatcher):
        super().__init__()
        self._dispatcher, self._fed = dispatcher, 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave the dispatcher out: Tune writes its searcher to disk for a restore that is never made."""
        return {}

    def suggest(  # pyright: ignore[reportIncompatibleMethodOverride] (FINISHED is a text)
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        full = self._fed >= BATCH
        if self._dispatcher.over or (full and not self._dispatcher.queue.out):
            return self.FINISHED
        spec = None if full else self._dispatcher.next()
        if spec is None:
            return None
        self._fed += 1
        return {"spec": spec}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The messenger reports it."""

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to restore."""

    def restore(self, checkpoint_path: str) -> None:
        """There is nothing to restore."""


class InTurn(FIFOScheduler):
    """The scheduler that starts each trial once, in the order they come.

    Tune's own order offers a worker that has become free to the trial whose new worker is just starting, and throws
    that new one away: short trials would never use more than one worker. It also looks at all trials every time.
    """

    def __init__(self):
        super().__init__()
        self._new: list[Trial] = []

    def on_trial_add(self, tune_controller, trial) -> None:
        self._new.append(trial)

    def choose_trial_to_run(self, tune_controller) -> Trial | None:
        return self._new.pop(0) if self._new else None


class Messenger(tune.Callback):
    """The callback that tells the dispatcher what Tune does. It runs in Tune's controller loop, so it does little."""

    def __init__(self, dispatcher: Dispatcher):
        self._dispatcher = dispatcher

    def __getstate__(self) -> dict[str, Any]:
        """Leave the dispatcher out: Tune writes its callbacks to disk for a restore that is never made."""
        return {}

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        self._dispatcher.reported(trial.config["spec"]["id"], result, trial.temporary_state.ray_actor)

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        self._dispatcher.completed(trial.config["spec"]["id"], trial.last_result or {})

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        path = trial.error_file and Path(trial.error_file)
        error = path.read_text(encoding="utf-8") if path and path.exists() else ""
        self._dispatcher.failed(trial.config["spec"]["id"], error=error)

    def on_step_end(self, iteration, trials, **info) -> None:
        self._dispatcher.look_around()
