"""The machines of Ray: this one alone, or an existing cluster, and which of its nodes are fit to run trials."""

import functools
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import pairwise
from typing import Any

from harness.launch.queue import Bundle
from harness.launch.scratch import scratch, sweep
from harness.launch.supervise import Unreachable
from harness.runs.errors import RunError

try:
    import ray
    from ray._private.utils import read_ray_address
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise RunError(
        "a grid runs on ray, which is not installed: pip install 'ray[tune]' (one trial runs without it: "
        "metrix-bench trial)"
    ) from error

OBJECT_STORE_BYTES = 100 * 2**20  # trials exchange only numbers
LOOK_EVERY_S = 2.0
WARM_WITHIN_S = 120.0
CHECK_AGAIN_S = 60.0  # an unfit node may recover: its disk was full, or its share not mounted
DECLARED_DEAD_S = 30.0  # ray declares a node dead that misses five health checks of three seconds each
ANSWER_WITHIN_S = 10.0
OPEN_PROBE = (
    "from ray._raylet import GcsClient; import sys; GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)"
)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, with the resources that the cluster counts."""

    id: str
    name: str
    cpus: float
    gpus: float

    @property
    def works(self) -> bool:
        """Whether a trial could run here; heads often have no processors for trials."""
        return self.cpus > 0

    def holds(self, bundle: Bundle) -> bool:
        """Return whether it could run a trial that occupies `bundle` if nothing else was running."""
        return bundle.get("CPU", 0.0) <= self.cpus and bundle.get("GPU", 0.0) <= self.gpus


class Cluster:
    """The nodes of a cluster. Trials are sent only to those that are `fit`.

    address  where it was joined; None for a local Ray instance
    unfit    node id → reasons, and when they were found
    """

    def __init__(self, address: str | None = None):
        self.address = address
        self.fit: dict[str, Node] = {}
        self.unfit: dict[str, tuple[tuple[str, ...], float]] = {}
        self._alive: dict[str, Node] = {}
        self._looked_at = 0.0
        self._checking: dict[Any, Node] = {}
        self._preparing: dict[Any, Node] = {}
        self._warming: list[Any] = []
        self._sizes: list[tuple[float, int]] = []  # (time, slots from then on)

    @property
    def shared(self) -> bool:
        """Whether other machines belong to it, or may join it."""
        return self.address is not None

    def warm_up(self) -> None:
        """Let a process on every node import what checks need, without waiting for it."""
        self._warming = [Call(_imports).on(node) for node in self.nodes() if node.works]

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive; their names are unique."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        names = [node["NodeManagerHostname"] for node in alive]
        return [
            Node(
                node["NodeID"],
                name if names.count(name) == 1 else f"{name}/{node['NodeID'][:6]}",
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
            )
            for node, name in zip(alive, names, strict=True)
        ]

    def on_each(self, nodes: Sequence[Node], call: "Call") -> dict[str, Any]:
        """Run `call` on all nodes at once; return node id → its result, or the exception it raised."""
        if self._warming:  # so that the same process answers, not a second one
            ray.wait(self._warming, num_returns=len(self._warming), timeout=WARM_WITHIN_S)
        tasks = {node.id: call.on(node) for node in nodes}
        results = {}
        for node_id, task in tasks.items():
            try:
                results[node_id] = ray.get(task)
            except Exception as error:  # whatever goes wrong on a node is its result
                results[node_id] = error
        return results

    def stays(self, node: Node) -> bool:
        """Return whether a node that does not answer is alive; ray notices a dead one within seconds."""
        deadline = time.monotonic() + DECLARED_DEAD_S
        while time.monotonic() < deadline:
            if node.id not in {other.id for other in self.nodes()}:
                return False
            time.sleep(0.5)
        return True

    def admit(self, node: Node) -> None:
        """Let trials run on a node."""
        self.unfit.pop(node.id, None)
        self.fit[node.id] = self._alive[node.id] = node

    def reject(self, node: Node, reasons: Sequence[str]) -> None:
        """Let no trial run on a node, for these reasons."""
        self.fit.pop(node.id, None)
        self._alive[node.id] = node
        self.unfit[node.id] = tuple(reasons), time.monotonic()

    def look(
        self, check: "Call", judge: Callable[[Any], Sequence[str]], prepare: "Call"
    ) -> list[tuple[str, Node, Sequence[str]]]:
        """Return what has changed since the last look, as ("joined" | "unfit" | "left", node, reasons).

        A new node runs `check`, and `judge` lists what is wrong with its answer. An unfit node is checked again every
        minute, and returned when its reasons change. A fit one joins after it has run `prepare`, so no trial waits
        for that. A look within LOOK_EVERY_S of the last one finds nothing.
        """
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return []
        self._looked_at, changes = time.monotonic(), []
        alive = {node.id: node for node in self.nodes()}
        for node_id in [n for n in self._alive if n not in alive]:
            changes.append(("left", self._alive.pop(node_id), ()))
            self.fit.pop(node_id, None)
            self.unfit.pop(node_id, None)
        for node in alive.values():
            if node.works and self._needs_check(node):
                # A new process: the one that answered before still has the old packages imported.
                call = replace(check, apart=True) if node.id in self.unfit else check
                self._checking[call.on(node)] = node
        judged = []
        for node, reasons in _completed(self._checking, judge, "the check failed"):
            if reasons:
                judged.append((node, reasons))
            elif node.id in alive:
                self._preparing[prepare.on(node)] = node
        judged += _completed(self._preparing, lambda answer: (), "its images could not be prepared")
        for node, reasons in judged:
            if node.id not in alive:
                continue
            known = self.unfit.get(node.id, (None,))[0]
            (self.reject(node, reasons) if reasons else self.admit(node))
            if known != tuple(reasons):
                changes.append(("unfit" if reasons else "joined", node, reasons))
        return changes

    def _needs_check(self, node: Node) -> bool:
        """Return whether a node is new, or was unfit a minute ago, and is not being checked now."""
        if node.id in {other.id for other in self._newcomers()}:
            return False
        return node.id not in self._alive or (
            node.id in self.unfit and time.monotonic() - self.unfit[node.id][1] > CHECK_AGAIN_S
        )

    def _newcomers(self) -> list[Node]:
        """Return the nodes that are still being checked or prepared."""
        return [*self._checking.values(), *self._preparing.values()]

    @property
    def room(self) -> Bundle:
        """The processors and GPUs of all fit nodes together."""
        nodes = self.fit.values()
        return {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}

    @property
    def cpus_per_gpu(self) -> float:
        """The processors for each GPU, on the fit node that has the fewest; 0 without GPUs."""
        return min((node.cpus / node.gpus for node in self.fit.values() if node.gpus), default=0.0)

    def processors(self, bundle: Bundle) -> int:
        """Return how many processors a trial may use: its own, or those that belong to its share of GPUs."""
        return int(max(bundle.get("CPU", 0.0), bundle.get("GPU", 0.0) * self.cpus_per_gpu, 1.0))

    def holds(self, bundle: Bundle) -> bool:
        """Return whether a fit node could run a trial that occupies `bundle`."""
        return any(node.holds(bundle) for node in self.fit.values())

    def count_slots(self, bundles: Sequence[Bundle]) -> int:
        """Return how many trials of the mean size of `bundles` run at a time now, and note it for `mean_slots`."""
        count = 0.0
        for node in self.fit.values():
            have = {"CPU": node.cpus, "GPU": node.gpus}
            means = {name: sum(bundle.get(name, 0.0) for bundle in bundles) / max(len(bundles), 1) for name in have}
            count += min((have[name] / mean for name, mean in means.items() if mean > 0), default=0.0)
        slots = max(1, int(count + 1e-6)) if self.fit else 0
        self._sizes.append((time.monotonic(), slots))
        return slots

    @property
    def mean_slots(self) -> float:
        """The mean of `count_slots` over the time since its first call; 0 before."""
        sizes = [*self._sizes, (time.monotonic(), 0)]
        spans = [(end - began, slots) for (began, slots), (end, _) in pairwise(sizes)]
        total = sum(span for span, _ in spans)
        return sum(span * slots for span, slots in spans) / total if total else 0.0

    def selector(self, bundle: Bundle, avoid: str | None = None) -> str | None:
        """Return Ray's label expression for the nodes where a trial may not run; None if it may run anywhere.

        The node `avoid` is excluded if another fit node could hold the trial.
        """
        excluded = {*self.unfit, *(node.id for node in self._newcomers())}
        if avoid is not None and any(n.id != avoid and n.holds(bundle) for n in self.fit.values()):
            excluded.add(avoid)
        return f"!in({','.join(sorted(excluded))})" if excluded else None


def _imports() -> None:
    """Import what calls need, ahead of them."""
    with suppress(ImportError):  # the call itself will report it
        import_module("harness.launch.preflight")


def _completed(
    tasks: dict[Any, Node], judge: Callable[[Any], Sequence[str]], otherwise: str
) -> Iterator[tuple[Node, Sequence[str]]]:
    """Yield the nodes whose task has ended and the reasons that make them unfit, removing them from `tasks`.

    The reasons are those of `judge`, or `otherwise` and the error if the task or `judge` failed.
    """
    for task in ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[0] if tasks else ():
        node = tasks.pop(task)
        try:
            reasons = judge(ray.get(task))
        except Exception as error:  # whatever goes wrong on a node is its result
            reasons = [f"{otherwise}: {_first_line(error)}"]
        yield node, reasons


@dataclass(frozen=True)
class Call:
    """A function of a module with its arguments, to run on a node beside its trials.

    whole           with all GPUs of the node, once they are free; otherwise the function sees none
    apart           in a process that ends with it; otherwise calls share one, which imports torch once
    about_the_node  further arguments, made for each node
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    whole: bool = False
    apart: bool = False
    about_the_node: Callable[[Node], Mapping[str, Any]] = field(default=lambda node: {})

    def on(self, node: Node) -> Any:
        """Start it on `node`; return the future of its result."""
        remote = ray.remote(
            num_cpus=0,
            num_gpus=node.gpus if self.whole else 0,
            max_retries=0,
            max_calls=1 if self.apart else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),  # pyright: ignore[reportArgumentType] (ray lists too few)
        )(self.function)
        return remote.remote(*self.arguments, **self.about_the_node(node))


@contextmanager
def opened(address: str | None) -> Iterator[Cluster]:
    """Yield a local Ray instance (None), or the cluster at `address`; stop or leave it on exit."""
    with alone() if address is None else joined(address):
        try:
            yield Cluster(address)
        finally:
            ray.shutdown()


@contextmanager
def alone() -> Iterator[None]:
    """Start a local Ray instance: on loopback, with its own token, silent. Remove what dead ones left."""
    sweep()
    with scratch("ray") as folder:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(_own_token(), encoding="utf-8")
        before = os.environ.get("RAY_AUTH_TOKEN_PATH")
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        _silence()
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            _temp_dir=str(folder),
        )
        try:
            yield
        finally:
            os.environ.pop("RAY_AUTH_TOKEN_PATH")
            if before is not None:
                os.environ["RAY_AUTH_TOKEN_PATH"] = before


@functools.cache
def _own_token() -> str:
    """Return the token of every ray that this process starts: ray reads it once in a process."""
    return secrets.token_hex(32)


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Join the cluster at `address` ("auto" or host:port), which must require a token unless it is on loopback."""
    _silence()
    try:
        _require_answer(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise Unreachable(
            f"no ray cluster can be joined at {address} ({_first_line(error)}): start one on this machine with "
            "`ray start`, give it the cluster's token (RAY_AUTH_TOKEN_PATH), or name another address"
        ) from None
    try:
        if not _on_loopback():
            _require_token(address, ray.get_runtime_context().gcs_address)
    except BaseException:
        ray.shutdown()
        raise
    yield


def _on_loopback() -> bool:
    return all(node["NodeManagerAddress"].startswith("127.") for node in ray.nodes())


def _require_answer(address: str) -> None:
    """Raise ConnectionError if nothing listens at an address: ray itself would try for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or read_ray_address() or ""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_WITHIN_S).close()


def _require_token(address: str, head: str) -> None:
    """Raise RunError unless the cluster rejects a client without a token.

    Another process tries it, since ray has one mode in a process.
    """
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", OPEN_PROBE, head],
            env={**without, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=False,
        )
        code, output = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, output = 1, "no answer within a minute"
    if code == 0:
        raise RunError(
            f"the cluster at {address} accepts anyone who can reach it, to run any code: start every node "
            "with RAY_AUTH_MODE=token and the same token (`ray get-auth-token --generate`)"
        )
    if not re.search("auth", output, re.IGNORECASE):
        raise RunError(f"could not determine whether the cluster at {address} requires a token: {output[-300:]}")


def _silence() -> None:
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def last_line(error: object) -> str:
    """Return the last line of an error, without the advice that ray adds for every conceivable cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(" Worker exit type")[0] if lines else "no message"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
