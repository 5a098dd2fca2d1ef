"""Ray's machines: a ray of this one alone, or a cluster that exists; which of its nodes are fit to run trials."""

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
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise RunError(
        "a grid runs on ray, which is not installed: pip install 'ray[tune]' (one trial runs without it: "
        "metrix-bench trial)"
    ) from error

OBJECT_STORE_BYTES = 100 * 2**20  # trials exchange nothing but numbers
LOOK_EVERY_S = 2.0
WARM_WITHIN_S = 120.0
ASK_AGAIN_S = 60.0  # a node that was unfit: its disk was full, or its share not mounted
MISSED_AFTER_S = 30.0  # ray takes a node for dead that has not answered five times in three seconds each
ANSWER_WITHIN_S = 10.0
OPEN_PROBE = (
    "from ray._raylet import GcsClient; import sys; GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)"
)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as the cluster counts it."""

    id: str
    name: str
    cpus: float
    gpus: float

    @property
    def works(self) -> bool:
        """Whether a trial could run here; heads often have nothing to run one on."""
        return self.cpus > 0

    def holds(self, bundle: Bundle) -> bool:
        """Whether it could run a trial that occupies `bundle`, if nothing else ran."""
        return bundle.get("CPU", 0.0) <= self.cpus and bundle.get("GPU", 0.0) <= self.gpus


class Cluster:
    """The nodes of a cluster; `fit` are those that passed `vet`, the only ones that trials are sent to.

    `address`: where it was joined; None for a ray of this machine alone.
    """

    def __init__(self, address: str | None = None):
        self.address = address
        self.fit: dict[str, Node] = {}
        self.unfit: dict[str, tuple[tuple[str, ...], float]] = {}  # node id → reasons, when they were found
        self._alive: dict[str, Node] = {}
        self._looked = 0.0
        self._vetting: dict[Any, Node] = {}
        self._preparing: dict[Any, Node] = {}
        self._warming: list[Any] = []
        self._sizes: list[tuple[float, int]] = []  # (when, slots from then on)

    @property
    def shared(self) -> bool:
        """Whether it has other machines than this one, or may come to have some."""
        return self.address is not None

    def warm_up(self) -> None:
        """Have a process on every node import what it needs to answer for the node; nobody waits for it."""
        self._warming = [Call(_imports).on(node) for node in self.nodes() if node.works]

    def nodes(self) -> list[Node]:
        """The nodes that are alive; their names are unique."""
        found = [node for node in ray.nodes() if node["Alive"]]
        names = [node["NodeManagerHostname"] for node in found]
        return [
            Node(
                node["NodeID"],
                name if names.count(name) == 1 else f"{name}/{node['NodeID'][:6]}",
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
            )
            for node, name in zip(found, names, strict=True)
        ]

    def on_each(self, nodes: Sequence[Node], call: "Call") -> dict[str, Any]:
        """What `call` returns on each node, or the exception it raises: node id → result. All at the same time."""
        if self._warming:  # the process that imports is the one to answer, not a second one beside it
            ray.wait(self._warming, num_returns=len(self._warming), timeout=WARM_WITHIN_S)
        tasks = {node.id: call.on(node) for node in nodes}
        found = {}
        for node_id, task in tasks.items():
            try:
                found[node_id] = ray.get(task)
            except Exception as error:  # whatever a node does wrong is its answer
                found[node_id] = error
        return found

    def stays(self, node: Node) -> bool:
        """Whether a node that does not answer is there all the same: one that died is missed within seconds."""
        deadline = time.monotonic() + MISSED_AFTER_S
        while time.monotonic() < deadline:
            if node.id not in {one.id for one in self.nodes()}:
                return False
            time.sleep(0.5)
        return True

    def admit(self, node: Node) -> None:
        """Let trials run on a node."""
        self.unfit.pop(node.id, None)
        self.fit[node.id] = self._alive[node.id] = node

    def refuse(self, node: Node, reasons: Sequence[str]) -> None:
        """Let no trial run on a node, for these reasons."""
        self.fit.pop(node.id, None)
        self._alive[node.id] = node
        self.unfit[node.id] = tuple(reasons), time.monotonic()

    def look(
        self, vet: "Call", judge: Callable[[Any], Sequence[str]], prepare: "Call"
    ) -> list[tuple[str, Node, Sequence[str]]]:
        """What has changed since the last look: ("joined" | "unfit" | "left", node, reasons); at most every 2 s.

        A node that is new is asked `vet`, and what it answers goes to `judge`, which says what makes it unfit; such a
        one is asked again every minute, and told of when that changes. One that is fit has joined when it has done
        `prepare`: no trial of it waits for that.
        """
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return []
        self._looked, changes = time.monotonic(), []
        alive = {node.id: node for node in self.nodes()}
        for node_id in [n for n in self._alive if n not in alive]:
            changes.append(("left", self._alive.pop(node_id), ()))
            self.fit.pop(node_id, None)
            self.unfit.pop(node_id, None)
        for node in alive.values():
            if node.works and self._is_to_be_asked(node):
                # A process that has answered knows what was installed then.
                again = replace(vet, apart=True) if node.id in self.unfit else vet
                self._vetting[again.on(node)] = node
        found = []
        for node, reasons in _answered(self._vetting, judge, "it could not be asked"):
            if reasons:
                found.append((node, reasons))
            elif node.id in alive:
                self._preparing[prepare.on(node)] = node
        found += _answered(self._preparing, lambda answer: (), "its images could not be prepared")
        for node, reasons in found:
            if node.id not in alive:
                continue
            known = self.unfit.get(node.id, (None,))[0]
            (self.refuse(node, reasons) if reasons else self.admit(node))
            if known != tuple(reasons):
                changes.append(("unfit" if reasons else "joined", node, reasons))
        return changes

    def _is_to_be_asked(self, node: Node) -> bool:
        """Whether a node is new, or was unfit a minute ago, and is not being asked now."""
        if node.id in {other.id for other in self._newcomers()}:
            return False
        return node.id not in self._alive or (
            node.id in self.unfit and time.monotonic() - self.unfit[node.id][1] > ASK_AGAIN_S
        )

    def _newcomers(self) -> list[Node]:
        """Nodes of which it is not known yet whether they are fit."""
        return [*self._vetting.values(), *self._preparing.values()]

    @property
    def room(self) -> Bundle:
        """What all fit nodes hold together."""
        nodes = self.fit.values()
        return {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}

    def holds(self, bundle: Bundle) -> bool:
        """Whether some fit node could run a trial that occupies `bundle`."""
        return any(node.holds(bundle) for node in self.fit.values())

    def count_slots(self, bundles: Sequence[Bundle]) -> int:
        """How many trials run at a time now, where they occupy what these do on average; `mean_slots` keeps it."""
        count = 0.0
        for node in self.fit.values():
            have = {"CPU": node.cpus, "GPU": node.gpus}
            means = {name: sum(bundle.get(name, 0.0) for bundle in bundles) / max(len(bundles), 1) for name in have}
            count += min((have[name] / mean for name, mean in means.items() if mean > 0), default=0.0)
        found = max(1, int(count + 1e-6)) if self.fit else 0
        self._sizes.append((time.monotonic(), found))
        return found

    @property
    def mean_slots(self) -> float:
        """What `count_slots` found, on average over the time since it was asked first; 0 before."""
        sizes = [*self._sizes, (time.monotonic(), 0)]
        spans = [(end - began, found) for (began, found), (end, _) in pairwise(sizes)]
        total = sum(span for span, _ in spans)
        return sum(span * found for span, found in spans) / total if total else 0.0

    def selector(self, bundle: Bundle, avoid: str | None = None) -> str | None:
        """Where a trial may not run, in Ray's words for labels of nodes; None where it may run anywhere.

        `avoid` counts where another fit node could hold the trial.
        """
        shunned = {*self.unfit, *(node.id for node in self._newcomers())}
        if avoid is not None and any(n.id != avoid and n.holds(bundle) for n in self.fit.values()):
            shunned.add(avoid)
        return f"!in({','.join(sorted(shunned))})" if shunned else None


def _imports() -> None:
    """Import what `Call`s need, ahead of them."""
    with suppress(ImportError):  # which the call itself will tell of
        import_module("harness.launch.preflight")


def _answered(
    tasks: dict[Any, Node], judge: Callable[[Any], Sequence[str]], otherwise: str
) -> Iterator[tuple[Node, Sequence[str]]]:
    """The nodes whose task has ended, and what makes them unfit: what `judge` says of the answer, or that there is
    none it could judge. They are taken out of `tasks`."""
    for task in ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[0] if tasks else ():
        node = tasks.pop(task)
        try:
            reasons = judge(ray.get(task))
        except Exception as error:  # whatever a node does wrong is its answer
            reasons = [f"{otherwise}: {_first_line(error)}"]
        yield node, reasons


@dataclass(frozen=True)
class Call:
    """A function of a module with its arguments, to be run on a node beside whatever runs there.

    `whole`: with all GPUs of the node, once they are free; without, the function sees none. `apart`: in a process
    that ends with it; others share one, so that it imports torch once.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    whole: bool = False
    apart: bool = False
    about_the_node: Callable[[Node], Mapping[str, Any]] = field(default=lambda node: {})

    def on(self, node: Node) -> Any:
        """Run it on `node`; the future of what it returns."""
        remote = ray.remote(
            num_cpus=0,
            num_gpus=node.gpus if self.whole else 0,
            max_retries=0,
            max_calls=1 if self.apart else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )(self.function)
        return remote.remote(*self.arguments, **self.about_the_node(node))


@contextmanager
def opened(address: str | None) -> Iterator[Cluster]:
    """A ray of this machine alone (None), or the cluster at `address`; left, or ended, on leaving."""
    with alone() if address is None else joined(address):
        try:
            yield Cluster(address)
        finally:
            ray.shutdown()


@contextmanager
def alone() -> Iterator[None]:
    """A ray of this machine alone: loopback, a token of its own, silent. What dead ones left is cleared away."""
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
    """The token of every ray that this process starts: ray reads it once in a process."""
    return secrets.token_hex(32)


@contextmanager
def joined(address: str) -> Iterator[None]:
    """The cluster at `address` ("auto" or host:port), which must ask for a token unless it is on loopback alone."""
    _silence()
    try:
        _require_answer(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
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
    """Raise ConnectionError where nobody listens at an address: ray itself would try for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or ray._private.utils.read_ray_address() or ""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_WITHIN_S).close()


def _require_token(address: str, head: str) -> None:
    """Raise RunError unless the cluster turns away someone without a token.

    Requested by another process, since ray knows one mode.
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
        code, said = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, said = 1, "no answer within a minute"
    if code == 0:
        raise RunError(
            f"the cluster at {address} lets in anyone who can reach it, to run what they like: start every node "
            "with RAY_AUTH_MODE=token and the same token (`ray get-auth-token --generate`)"
        )
    if not re.search("auth", said, re.IGNORECASE):
        raise RunError(f"whether the cluster at {address} asks for a token could not be found out: {said[-300:]}")


def _silence() -> None:
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def last_line(error: object) -> str:
    """Return the last line of an error, without the advice that ray adds for every conceivable cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(" Worker exit type")[0] if lines else "no message"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
