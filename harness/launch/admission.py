"""Admission: which nodes are fit to run these trials, what a trial occupies on them, and the images they prepare."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.config import Choice, Resources, Trial
from harness.launch import packing, preflight
from harness.launch.cluster import Call, Cluster, Node, last_line
from harness.launch.dispatch import Admission, counted
from harness.launch.queue import Bundle
from harness.launch.supervise import Unreachable
from harness.runs.errors import RunError
from harness.runs.run import Run
from harness.training import pictures
from harness.training.bench import training_classes
from harness.training.pictures import Sources

NODES_WITHIN_S = 300.0  # in a cluster that has just started, the head comes first
Note = Callable[[str], None]


def admission(trials: Sequence[Trial], sources: Sources) -> Admission:
    """Return what a node must answer and prepare before it runs one of these trials."""
    choices: list[Choice] = list({trial.dataset.model_dump_json(): trial.dataset for trial in trials}.values())
    weights = sorted({t.backbone.pretrained for t in trials if isinstance(t.backbone.pretrained, str)})
    trainings = list(dict.fromkeys(trial.training for trial in trials))
    here = preflight.facts(choices, sources, sources.identity, weights)
    arguments = (choices, sources, sources.identity, weights, trainings)
    seen = pictures.same_pictures(trials)
    frozen = any(trial.model.backbone == "frozen" for trial in trials)  # its features are faster on a GPU
    return Admission(
        check=Call(preflight.facts, arguments, about_the_node=lambda node: {"counted_gpus": node.gpus}),
        judge=lambda there: preflight.mismatches(here, there),
        prepare=Call(preflight.prepare_here, (seen, sources), whole=frozen, apart=frozen),
    )


def admit_all(cluster: Cluster, required: Admission | None, note: Note) -> None:
    """Admit the nodes that the cluster has now; all of them without checks if nothing is `required`.

    Raises RunError if there is none, or if one is unfit.
    """
    nodes = _working_nodes(cluster, note)
    if required is None:
        for node in nodes:
            cluster.admit(node)
        return
    answers = cluster.on_each(nodes, required.check)
    problems = []
    for node in nodes:
        answer = answers[node.id]
        if isinstance(answer, Exception):
            if cluster.stays(node):
                problems.append(f"{node.name}: the check failed: {last_line(answer)}")
            continue  # a node that died during the check is no problem
        problems += [f"{node.name}: {reason}" for reason in required.judge(answer)]
        cluster.admit(node)
    if problems:
        raise RunError("these nodes would not run the same trials:\n  " + "\n  ".join(problems))


def _working_nodes(cluster: Cluster, note: Note) -> list[Node]:
    """Return the nodes that could run a trial, waiting for the first one."""
    deadline, noted = time.monotonic() + NODES_WITHIN_S, False
    while not (nodes := [node for node in cluster.nodes() if node.works]):
        if time.monotonic() > deadline:
            raise Unreachable(f"the cluster at {cluster.address} has no node with a processor for trials")
        if not noted:
            note(f"waiting for the nodes of {cluster.address}")
            noted = True
        time.sleep(1)
    return nodes


def prepare_images(
    cluster: Cluster, trials: Sequence[Trial], sources: Sources, required: Admission | None, note: Note
) -> None:
    """Prepare the images and features that trials need on every admitted node, before the first trial starts."""
    if required is None:
        pictures.prepare_images(trials, sources, note)
        return
    nodes = list(cluster.fit.values())
    answers = cluster.on_each(nodes, required.prepare)
    for node in nodes:
        answer = answers[node.id]
        if isinstance(answer, Exception):
            if cluster.stays(node):
                raise RunError(f"{node.name}: {last_line(answer)}")
            continue  # the node died; its trials will run elsewhere
        for sentence in answer:
            note(f"{node.name}: {sentence}")


def bundles(
    cluster: Cluster, trials: Sequence[Trial], sources: Sources, wants: Resources, run: Run, note: Note
) -> dict[str, Bundle]:
    """Return what each trial occupies, by trial id; memory on GPUs is measured unless the grid fixes the share.

    Raises RunError if no node could hold a trial.
    """
    room, nodes = cluster.room, list(cluster.fit.values())
    gpus = room["GPU"] if sources.device is None or wants.gpus_per_trial != "auto" else 0.0
    peaks, total = {}, 0
    if gpus and wants.gpus_per_trial == "auto":
        peaks, total = _measured(cluster, trials, sources, run, note)
    occupied = packing.bundles(trials, wants, gpus, cluster.cpus_per_gpu, peaks, total)
    for bundle in {tuple(bundle.items()): bundle for bundle in occupied.values()}.values():
        if not cluster.holds(bundle):
            have = "; ".join(f"{node.name} has {counted({'CPU': node.cpus, 'GPU': node.gpus})}" for node in nodes)
            raise RunError(f"a trial needs {counted(bundle)}; {have}")
    return occupied


def _measured(
    cluster: Cluster, trials: Sequence[Trial], sources: Sources, run: Run, note: Note
) -> tuple[dict[str, int], int]:
    """Return peak bytes by `packing.memory_key`, and the bytes of the smallest GPU; measured once for each run."""
    known = run.memory()
    nodes = [node for node in cluster.fit.values() if node.gpus]
    sizes = cluster.on_each(nodes, Call(preflight.least_gpu_bytes))
    total = min((size for size in sizes.values() if isinstance(size, int)), default=0)
    if not total:
        raise RunError(f"{nodes[0].name}: its GPUs cannot be used ({last_line(sizes[nodes[0].id])})")
    node = replace(nodes[0], gpus=1)
    for key, trial in {packing.memory_key(trial): trial for trial in trials}.items():
        if key not in known:
            note(f"measuring the memory of {trial.arm.label} on a GPU of {node.name}")
            call = Call(packing.measure, (trial, training_classes(trial, sources)), whole=True, apart=True)
            peak = cluster.on_each([node], call)[node.id]
            if isinstance(peak, int):
                known[key] = peak  # a trial that cannot be measured gets a whole GPU, and is measured next time
    run.keep_memory(known)
    return known, total
