"""Ray Tune runs the trials of a queue: the engine, never the book-keeper.

A trial is a Tune trial whose steps are epochs; actors are reused, so a process imports torch once. Tune is handed one
trial at a time, when there is room for it: the order, the retries and the nodes are the queue's. Done is what has a
record: every invocation submits only what lacks one, whatever became of the last. Tune's own checkpoints, result
files and restore are not used.
"""

import math
import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

from ray import tune

from harness import registry
from harness.config import Choice, Resources, Trial
from harness.grid import Grid
from harness.launch import packing, preflight
from harness.launch.actor import TrialActor
from harness.launch.cluster import Call, Cluster, Node, opened, ray
from harness.launch.plan import relative_costs
from harness.launch.queue import FINAL, Bundle, Entry, Queue
from harness.launch.scratch import scratch
from harness.launch.supervise import Unreachable
from harness.runs import storage
from harness.runs.live import Unseen, View
from harness.runs.record import Failure, Run, RunError
from harness.training.trial import Sources, training_classes

DRIVER_ATTEMPTS = 3  # a crash of Tune's controller is survived, unless so many come without a trial between
NODES_WITHIN_S = 300.0  # a cluster that has just been started has a head first
TUNE_BATCH = 2000  # trials of one Tune experiment: its controller looks at all of them in every step
GRACE_S = 10.0  # after which a trial whose own timer did not end it is ended from here


class Engine:
    """Ray and what watches it: the `cluster` that was joined, or that at `address` once there is something to run."""

    def __init__(
        self,
        sources: Sources,
        wants: Resources,
        view: View,
        notes: list[str],
        track: Sequence[tune.Callback] = (),
        address: str | None = None,
        cluster: Cluster | None = None,
    ):
        self.sources, self.wants, self.view, self.notes, self.track = sources, wants, view, notes, track
        self.address, self.interrupted = address, False
        self._open, self._cluster = ExitStack(), cluster
        _watch.interrupted = False

    @property
    def slots(self) -> float:
        """How many trials could run at a time, on average; 0 where none had to."""
        return self._cluster.mean_slots if self._cluster else 0.0

    def close(self) -> None:
        """Leave ray, or stop it where it was started."""
        ray.shutdown()
        self._open.close()

    def searched(self, grid: Grid, trials: Sequence[Trial], run: Run) -> list[Trial]:
        """The trials with the settings that a search in `run`/search chooses; [] when it was interrupted."""
        from harness.launch import search

        folder = run.sub("search")
        folder.prepare()

        def execute(batch: list[Trial]) -> bool:
            self.run(batch, folder)
            return not self.interrupted

        return search.tune(trials, grid.search, folder, execute)

    def run(self, trials: Sequence[Trial], run: Run) -> None:
        """Submit trials until each has a record in `run`, has failed for good, or the user stops it all."""
        left = run.missing(trials)
        if not left:
            return
        sources = replace(self.sources, out=run.address, identity=run.identity)
        costs = relative_costs(left, sources.data, sources.cache)
        cluster = self._joined(left, sources)
        bundles = self._bundles(left, sources, run)
        queue = Queue.of(left, bundles, costs, run.begun(), self.wants.retries)
        vet = self._vet(left, sources) if cluster.shared else None
        _hold(self.view, run, queue, cluster, vet, _preparation(left, sources), self.wants.epoch_timeout_s)
        self.view.begin(len(trials), len(trials) - len(left), cluster.count_slots(list(bundles.values())))
        self.view.expect(costs)
        while self.notes:
            self.view.note(self.notes.pop(0))
        try:
            self._prepare_images(left, sources)
            with stoppable():
                self._drain(queue, sources, run)
            run.push(run.folder / "trackers")
        finally:
            self.interrupted = _watch.interrupted
            self.view.end(self.interrupted)

    def _drain(self, queue: Queue, sources: Sources, run: Run) -> None:
        """Run Tune until the queue is empty; what an attempt leaves without an end is submitted again."""
        crashes = left = 0
        while len(queue) and not _watch.interrupted:
            try:
                _fit(sources, self.wants, self.track)
            except RunError:
                raise
            except RuntimeError:
                if _watch.interrupted:
                    return
                crashes = crashes + 1 if len(queue) == left else 1
                left = len(queue)
                traceback.print_exc()
                reason = traceback.format_exc().strip().splitlines()[-1]
                if crashes == DRIVER_ATTEMPTS:
                    raise RunError(f"ray's controller stopped {crashes} times in a row: {reason}") from None
                self.view.note(f"ray's controller stopped; what lacks a record is submitted again: {reason}")
            for entry in list(queue.out.values()):
                done = run.record(entry.trial) is not None
                queue.finished(entry.trial.id) if done else queue.returned(entry.trial.id)

    def _joined(self, trials: Sequence[Trial], sources: Sources) -> Cluster:
        """The cluster, looked over before its first trial; RunError where it has no node, or an unfit one."""
        if self._cluster is None:
            self._cluster = self._open.enter_context(opened(self.address))
        if not self._cluster.fit:
            self._admit(self._cluster, trials, sources)
        return self._cluster

    def _admit(self, cluster: Cluster, trials: Sequence[Trial], sources: Sources) -> None:
        nodes = self._working(cluster)
        if not cluster.shared:
            for node in nodes:
                cluster.admit(node)
            return
        vet, judge = self._vet(trials, sources)
        answers = cluster.on_each(nodes, vet)
        wrong = []
        for node in nodes:
            answer = answers[node.id]
            if isinstance(answer, Exception):
                if not cluster.stays(node):
                    continue  # it died while it was asked
                wrong.append(f"{node.name}: it could not be asked: {_in_short(answer)}")
                continue
            wrong += [f"{node.name}: {reason}" for reason in judge(answer)]
            cluster.admit(node)
        if wrong:
            raise RunError("these nodes would not run the same trials:\n  " + "\n  ".join(wrong))

    def _working(self, cluster: Cluster) -> list[Node]:
        """The nodes that could run a trial, waiting for the first."""
        deadline, said = time.monotonic() + NODES_WITHIN_S, False
        while not (nodes := [node for node in cluster.nodes() if node.works]):
            if time.monotonic() > deadline:
                raise Unreachable(f"the cluster at {cluster.address} has no node with a processor for trials")
            if not said:
                self.view.note(f"waiting for the nodes of {cluster.address}")
                said = True
            time.sleep(1)
        return nodes

    def _vet(self, trials: Sequence[Trial], sources: Sources):
        """The question to a node whether it is fit, and the judgement of its answer."""
        choices: list[Choice] = list({trial.dataset.model_dump_json(): trial.dataset for trial in trials}.values())
        weights = sorted({t.backbone.pretrained for t in trials if isinstance(t.backbone.pretrained, str)})
        here = preflight.facts(choices, sources, sources.identity, weights)
        call = Call(
            preflight.facts,
            (choices, sources, sources.identity, weights),
            about_the_node=lambda node: {"counted_gpus": node.gpus},
        )
        return call, lambda there: preflight.mismatches(here, there)

    def _prepare_images(self, trials: Sequence[Trial], sources: Sources) -> None:
        """Decode on every machine what its trials will need, before the first of them."""
        if not self._cluster.shared:
            for sentence in preflight.prepare_here(trials, sources):
                self.view.note(sentence)
            return
        nodes = list(self._cluster.fit.values())
        answers = self._cluster.on_each(nodes, _preparation(trials, sources))
        for node in nodes:
            said = answers[node.id]
            if isinstance(said, Exception):
                if self._cluster.stays(node):
                    raise RunError(f"{node.name}: {_in_short(said)}")
                continue  # it died; its trials will run elsewhere
            for sentence in said:
                self.view.note(f"{node.name}: {sentence}")

    def _bundles(self, trials: Sequence[Trial], sources: Sources, run: Run) -> dict[str, Bundle]:
        """What each trial occupies; the memory of trials on GPUs is measured where the grid leaves the share open."""
        room, nodes = self._cluster.room, list(self._cluster.fit.values())
        gpus = room["GPU"] if sources.device is None or self.wants.gpus_per_trial != "auto" else 0.0
        peaks, total = {}, 0
        if gpus and self.wants.gpus_per_trial == "auto":
            peaks, total = self._measured(trials, sources, run)
        beside = min((node.cpus / node.gpus for node in nodes if node.gpus), default=0.0)
        bundles = packing.bundles(trials, self.wants, gpus, beside, peaks, total)
        for bundle in {tuple(b.items()): b for b in bundles.values()}.values():
            if not self._cluster.holds(bundle):
                have = "; ".join(f"{node.name} has {node.cpus:g} and {node.gpus:g}" for node in nodes)
                raise RunError(
                    f"a trial wants {bundle['CPU']:g} processors and {bundle.get('GPU', 0):g} GPUs; {have}"
                )
        return bundles

    def _measured(self, trials: Sequence[Trial], sources: Sources, run: Run) -> tuple[dict[str, int], int]:
        """Peak bytes by `packing.memory_key`, and those of the smallest GPU; measured once, kept with the run."""
        known = run.memory()
        nodes = [node for node in self._cluster.fit.values() if node.gpus]
        sizes = self._cluster.on_each(nodes, Call(preflight.least_gpu_bytes))
        total = min((size for size in sizes.values() if isinstance(size, int)), default=0)
        if not total:
            raise RunError(f"{nodes[0].name}: its GPUs cannot be used ({_in_short(sizes[nodes[0].id])})")
        one = replace(nodes[0], gpus=1)
        for key, trial in {packing.memory_key(trial): trial for trial in trials}.items():
            if key not in known:
                self.view.note(f"measuring the memory of {trial.arm.label} on a GPU of {one.name}")
                classes = training_classes(trial, sources)
                call = Call(packing.measure, (trial, classes), whole=True, apart=True)
                peak = self._cluster.on_each([one], call)[one.id]
                if isinstance(peak, int):
                    known[key] = peak  # one that cannot be measured has a GPU alone, and is measured the next time
        run.keep_memory(known)
        return known, total


def _preparation(trials: Sequence[Trial], sources: Sources) -> Call:
    """The call that decodes on a node what trials will need there."""
    some = list({(t.dataset.model_dump_json(), t.images): t for t in trials}.values())
    return Call(preflight.prepare_here, (some, sources))


TRACKERS = {  # ray's own callbacks: module, class, arguments
    "tensorboard": ("ray.tune.logger", "TBXLoggerCallback", {}),
    "wandb": ("ray.air.integrations.wandb", "WandbLoggerCallback", {"project": "metrix-bench"}),
    "mlflow": ("ray.air.integrations.mlflow", "MLflowLoggerCallback", {"experiment_name": "metrix-bench"}),
}


def trackers(names: Sequence[str]) -> list[tune.Callback]:
    """The callbacks that show learning curves elsewhere while trials run; no number is read back from them.

    Raises RegisterError for an unknown name, and for one whose package is not installed.
    """
    found = []
    for name in names:
        if name not in TRACKERS:
            raise registry.RegisterError(registry.unknown("tracker", name, TRACKERS))
        module, kind, arguments = TRACKERS[name]
        try:
            found.append(getattr(import_module(module), kind)(**arguments))
        except (ImportError, RuntimeError) as error:
            raise registry.RegisterError(
                f"tracker {name} is not installed: pip install '.[trackers]' ({error})"
            ) from error
    return found


def _fit(sources: Sources, wants: Resources, track: Sequence[tune.Callback] = ()) -> None:
    """One Tune experiment: it takes trials from the queue until that is empty, or it has had enough of them."""
    folder = _watch.run.folder / "trackers" if track else None
    with nullcontext(folder) if folder else scratch("tune") as place:
        tune.Tuner(
            tune.with_resources(TrialActor, _placement),
            param_space={"sources": sources, "epoch_timeout_s": wants.epoch_timeout_s},
            tune_config=tune.TuneConfig(
                search_alg=Feeder(),
                scheduler=InTurn(),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.config["spec"]["id"],
            ),
            run_config=tune.RunConfig(
                name=f"grid-{time.time_ns()}",
                storage_path=str(place),
                verbose=0,
                callbacks=[Messenger(), *track],
                failure_config=tune.FailureConfig(max_failures=0),  # the queue tries again
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


def _placement(config: Mapping) -> tune.PlacementGroupFactory:
    spec = config["spec"]
    where = {"bundle_label_selector": [{"ray.io/node-id": spec["selector"]}]} if spec["selector"] else {}
    return tune.PlacementGroupFactory([spec["bundle"]], **where)


@dataclass
class _Watch:
    """What the callbacks report to. Tune pickles callbacks and searchers, so this cannot be an attribute of one."""

    view: View = field(default_factory=Unseen)
    run: Run | None = None
    queue: Queue = field(default_factory=lambda: Queue(0))
    cluster: Cluster | None = None
    vet: tuple | None = None
    prepare: Call | None = None
    timeout_s: float = 3600.0
    interrupted: bool = False
    fed: int = 0
    since: dict[str, float] = field(default_factory=dict)  # trial id → when it was last heard of
    where: dict[str, str] = field(default_factory=dict)  # trial id → node id
    epoch: dict[str, int] = field(default_factory=dict)
    known: dict[str, Failure | None] = field(default_factory=dict)  # what had stopped it before this attempt
    actors: dict[str, object] = field(default_factory=dict)  # of those under way, and their processes
    pids: dict[str, int] = field(default_factory=dict)
    banned: set[str] = field(default_factory=set)  # trials killed because their node is unfit
    told: str = ""


_watch = _Watch()


def _hold(
    view: View, run: Run, queue: Queue, cluster: Cluster, vet: tuple | None, prepare: Call, timeout_s: float
) -> None:
    interrupted = _watch.interrupted
    vars(_watch).update(vars(_Watch(view, run, queue, cluster, vet, prepare, timeout_s, interrupted)))


class Feeder(tune.search.Searcher):
    """Hands Tune the next trial of the queue when there is room for it."""

    def suggest(self, trial_id: str) -> dict | str | None:
        queue, cluster = _watch.queue, _watch.cluster
        if _watch.interrupted or not len(queue) or (_watch.fed >= TUNE_BATCH and not queue.out):
            _watch.fed = 0
            return self.FINISHED
        if _watch.fed >= TUNE_BATCH:
            return None
        entry = queue.next(cluster.room, cluster.holds)
        if entry is None:
            _look_around()  # with nothing under way Tune calls nobody else
            if not queue.out:
                _say_what_is_waited_for()
            return None
        _watch.fed += 1
        _watch.since[entry.trial.id] = time.monotonic()
        _watch.known[entry.trial.id] = _watch.run.failure(entry.trial)
        _watch.epoch.pop(entry.trial.id, None)
        _watch.where.pop(entry.trial.id, None)
        _watch.actors.pop(entry.trial.id, None)
        return {"spec": _spec(entry, cluster)}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The messenger hears of it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of it is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing of it is kept."""


class InTurn(tune.schedulers.FIFOScheduler):
    """Starts each trial once, as it comes.

    Tune's own order offers a worker that has become free to the trial whose new worker is just starting, and throws
    that one away: short trials would never come to use more than one. (It would also look at all trials every time.)
    """

    def __init__(self):
        super().__init__()
        self._new: list[tune.experiment.Trial] = []

    def on_trial_add(self, tune_controller, trial) -> None:
        self._new.append(trial)

    def choose_trial_to_run(self, tune_controller) -> "tune.experiment.Trial | None":
        return self._new.pop(0) if self._new else None


def _spec(entry: Entry, cluster: Cluster) -> dict:
    """What Tune carries to the actor."""
    trial, bundle = entry.trial, entry.bundle
    return {
        "id": trial.id,
        "trial": trial.model_dump_json(),
        "epochs": trial.schedule.epochs,
        "attempt": entry.attempts,
        "bundle": bundle,
        "share": bundle.get("GPU", 0.0),
        "ranks": packing.ranks(bundle),
        "selector": cluster.selector(bundle, entry.avoid),
    }


def _say_what_is_waited_for() -> None:
    bundle = _watch.queue.waiting[0].bundle
    said = f"waiting for a node with {bundle['CPU']:g} processors and {bundle.get('GPU', 0):g} GPUs"
    if said != _watch.told:
        _watch.told = said
        _watch.view.note(said)


class Messenger(tune.Callback):
    """Tells queue and view what Tune does. Runs in Tune's controller loop, so it does little."""

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        spec = trial.config["spec"]
        trial_id = spec["id"]
        entry = _watch.queue.out.get(trial_id)
        if entry is None:
            return
        _watch.since[trial_id] = time.monotonic()
        if "node" in result:
            _watch.where[trial_id] = result["node"]
            _watch.actors[trial_id], _watch.pids[trial_id] = trial.temporary_state.ray_actor, result["pid"]
            _watch.view.started(entry.trial, _place(result), entry.attempts)
        elif "epoch" in result:
            _watch.epoch[trial_id] = result["epoch"]
            score = None if math.isnan(result["score"]) else result["score"]
            _watch.view.progress(trial_id, result["epoch"], spec["epochs"], result["loss"], score)

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        result, trial_id = trial.last_result or {}, trial.config["spec"]["id"]
        if trial_id not in _watch.queue.out:
            return
        if "failed" in result:
            _failed(trial, result["failed"])
        elif result.get("done") and "seconds" in result:
            _watch.queue.finished(trial_id)
            _watch.view.finished(trial_id, result["score"], result["seconds"], result["metric"])

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        if trial.config["spec"]["id"] in _watch.queue.out:
            _failed(trial)

    def on_step_end(self, iteration, trials, **info) -> None:
        _look_around()


def _place(result: Mapping) -> str:
    """Where a trial runs, in a word or two; nothing where there is one machine without GPUs."""
    if _watch.cluster.shared:
        node = _watch.cluster.fit.get(result["node"])
        gpus = f" GPU {result['gpus']}" if result["gpus"] else ""
        return (node.name if node else result["name"]) + gpus
    return f"GPU {result['gpus']}" if result["gpus"] else ""


def _failed(trial: "tune.experiment.Trial", kind: str | None = None) -> None:
    """A trial stopped: the queue decides whether it is tried again, the run folder keeps why."""
    spec = trial.config["spec"]
    entry = _watch.queue.out[spec["id"]]
    if spec["id"] in _watch.banned:
        _watch.banned.discard(spec["id"])
        _watch.queue.returned(spec["id"])
        return
    failure = _reason(trial, entry, kind)
    node, epoch = _watch.where.get(spec["id"]), _watch.epoch.get(spec["id"], 0)
    again = _watch.queue.failed(spec["id"], failure.kind, epoch, node)
    _watch.view.failed(failure.id, failure.reason, entry.attempts, again)


def _reason(trial: "tune.experiment.Trial", entry: Entry, kind: str | None) -> Failure:
    """What stopped a trial; in its own words where its process left some in this attempt."""
    run, spec = _watch.run, entry.trial
    failure = run.failure(spec)
    if failure is not None and (kind in FINAL or failure != _watch.known.get(spec.id)):
        return failure
    where = _watch.cluster.fit.get(_watch.where.get(spec.id, ""))
    on = f" on {where.name}" if where and _watch.cluster.shared else ""
    if _silent_s(spec.id) >= _watch.timeout_s:
        reason = f"no epoch ended within {_watch.timeout_s:g} s{on}; where it hung is in logs/{spec.id}.log"
        return run.fail(spec, "timeout", reason, _error_text(trial), entry.attempts)
    text = _error_text(trial)
    reason = f"its process{on} was lost: {_in_short(text)}; what it wrote last is in logs/{spec.id}.log"
    return run.fail(spec, "lost", reason, text, entry.attempts)


def _in_short(error: object) -> str:
    """The last line of an error, without the advice that ray adds for every thinkable cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(" Worker exit type")[0] if lines else "no message"


def _error_text(trial: "tune.experiment.Trial") -> str:
    path = trial.error_file
    return Path(path).read_text(encoding="utf-8") if path and Path(path).exists() else ""


def _look_around() -> None:
    """See which nodes have come or gone, and which trials hang; called all the time."""
    cluster = _watch.cluster
    overdue_s = _watch.timeout_s + storage.longest_wait_s() + GRACE_S
    for trial_id in [t for t in _watch.queue.out if t in _watch.actors and _silent_s(t) > overdue_s]:
        _end_process(trial_id)
    if not cluster.shared:
        return
    changes = cluster.look(*_watch.vet, _watch.prepare)
    for what, node, reasons in changes:
        if what == "joined":
            _watch.view.note(f"{node.name} joined with {node.cpus:g} processors and {node.gpus:g} GPUs")
        elif what == "left":
            _watch.view.note(f"{node.name} left; its trials go on elsewhere")
            if any(_nowhere(entry) for entry in _watch.queue.out.values()):
                os.kill(os.getpid(), signal.SIGUSR1)  # Tune ends in order, and what is out is submitted anew
        else:
            _watch.view.note(f"{node.name} is there and runs no trials: {'; '.join(reasons)}")
            _banish(node)
    if changes:
        entries = [*_watch.queue.out.values(), *_watch.queue.waiting]
        _watch.view.resized(cluster.count_slots([entry.bundle for entry in entries]))


def _nowhere(entry: Entry) -> bool:
    """Whether a trial waits for a node although the only ones that could hold it are those it was to avoid."""
    fit = [node for node in _watch.cluster.fit.values() if node.holds(entry.bundle)]
    return entry.trial.id not in _watch.where and entry.avoid in {node.id for node in fit} and len(fit) == 1


def _silent_s(trial_id: str) -> float:
    return time.monotonic() - _watch.since.get(trial_id, time.monotonic())


def _end_process(trial_id: str) -> None:
    """Kill the process of a trial, also one that answers nobody and does not run its own timer (a stopped one)."""
    ray.kill(_watch.actors.pop(trial_id))
    node = _watch.cluster.fit.get(_watch.where.get(trial_id, ""))
    if node is not None:
        Call(_kill, (_watch.pids[trial_id],)).on(node)


def _kill(pid: int) -> None:
    """End a process of this machine, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _banish(node: Node) -> None:
    """Take back the trials that Ray started on a node before it was known to be unfit."""
    for trial_id, where in _watch.where.items():
        if where == node.id and trial_id in _watch.queue.out and trial_id in _watch.actors:
            _watch.banned.add(trial_id)
            _end_process(trial_id)


def interrupt() -> None:
    """End the run in order, as Ctrl-C does; from any thread."""
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end Tune's loop in order, once; a second one ends the process at once."""

    def stop(number, frame):
        if _watch.interrupted:
            os._exit(130)
        _watch.interrupted = True
        os.kill(os.getpid(), signal.SIGUSR1)  # what Tune listens to

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until Tune listens
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
