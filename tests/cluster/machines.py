"""A cluster of several nodes on this machine, on loopback with its own token; each node has its own cache.

As a program, it starts a cluster, prints its address, and executes lines of standard input: `add CPUS GPUS HOURS`
(prints the number of the new node, whose clock is HOURS off), `kill NUMBER` (of the node's raylet, with SIGKILL),
`restart` (of the head, on the same port), `end`.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

from harness.data.cache import default_folder

ROOT = Path(__file__).parent.parent.parent


class Machines:
    """The cluster as tests use it. `environment`: what processes need to join it."""

    def __init__(
        self, folder: Path, nodes: tuple[tuple[float, float], ...] = ((1, 0), (1, 0)), authentication: str = "token"
    ):
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": authentication,
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all listeners on loopback
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.mark = str(token)  # is in the environment of all its processes
        self._errors = folder / "stderr"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.machines"],
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors.open("w"),
            text=True,
            start_new_session=True,
        )
        self.address = self._answer()
        self.nodes = [self.add(*node) for node in nodes]

    def add(self, cpus: float = 1, gpus: float = 0, hours: float = 0) -> int:
        """Start a node whose clock is `hours` off (with libfaketime); return its number."""
        return int(self._ask(f"add {cpus} {gpus} {hours}"))

    def kill(self, number: int) -> None:
        """Kill a node and everything that runs on it, with SIGKILL."""
        self._ask(f"kill {number}")

    def restart(self) -> None:
        """Kill the head with SIGKILL and start another at the same address, with a node of one processor."""
        self._ask("restart")

    def end(self) -> None:
        """Stop all nodes."""
        try:
            self._ask("end")
            self._process.wait(30)
        except (BrokenPipeError, EOFError, subprocess.TimeoutExpired):
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _ask(self, line: str) -> str:
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        for line in self._process.stdout or ():
            if line.startswith("= "):
                return line[2:].strip()
        raise EOFError(f"the cluster ended:\n{self._errors.read_text(errors='replace')}")


FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


@contextmanager
def _another(cache: Path, hours: float) -> Iterator[None]:
    """Processes that start inside are those of another machine, with its own cache and clock.

    Their time of day is `hours` off; durations are correct.
    """
    (cache / "metrix-bench").mkdir(parents=True, exist_ok=True)
    for drawn in default_folder().glob("glyphs-*.npz"):  # drawing them takes eight seconds on each node
        shutil.copy(drawn, cache / "metrix-bench")
    clock = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{hours:+g}h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache), **(clock if hours else {})}):
        yield


def _serve() -> None:
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="metrix-test-", dir="/tmp") as folder:
        # Cluster writes its address to ray's default folder, which it does not create and which another cluster of
        # this machine may use.
        os.environ["RAY_TMPDIR"] = folder
        (Path(folder) / "ray").mkdir()

        def begin(**where):
            arguments = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "temp_dir": folder, **where}
            return Cluster(initialize_head=True, head_node_args=arguments)

        cluster, nodes = begin(), []
        address = cluster.address
        print(f"= {address}", flush=True)
        for line in sys.stdin:
            word, *rest = line.split()
            answer = "done"
            if word == "add":
                cpus, gpus, hours = map(float, rest)
                with _another(Path(folder) / f"cache-{len(nodes)}", hours):
                    nodes.append(cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=80 * 2**20))
                answer = str(len(nodes) - 1)
            elif word == "kill":
                node = nodes[int(rest[0])]
                node.kill_raylet(check_alive=False)
                cluster.remove_node(node, allow_graceful=False)
            elif word == "restart":
                for node in cluster.list_all_nodes():
                    node.kill_all_processes(check_alive=False, allow_graceful=False)
                cluster, nodes = begin(gcs_server_port=int(str(address).rpartition(":")[2])), []
                with _another(Path(folder) / "cache-0", 0):
                    nodes.append(cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20))
            print(f"= {answer}", flush=True)
            if word == "end":
                cluster.shutdown()
                return


if __name__ == "__main__":
    _serve()
