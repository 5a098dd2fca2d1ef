"""The environment variables that Ray reads when it is imported; they are set here, before the first import.

A ray of this machine alone listens on the loopback interface. An existing cluster is joined as it is. Both require
their token.
"""

import os
import sys

from harness.runs.errors import RunError

SAFE = {"RAY_AUTH_MODE": "token"}  # even if the environment sets another mode
ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # its kill aborts the whole grid; the kernel's leads to a retry
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # the queue decides how many there is room for
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's state is never read back and grows with every trial
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name, it makes ray listen on 127.0.0.1 only, on Linux too
}
CLIENT = "ray://"
_prepared_for: bool | None = None  # a local Ray instance (True) or a cluster (False), once decided


def prepare(address: str | None = None) -> None:
    """Set the environment for a local Ray instance (None), or for joining the one at `address`.

    Raises RunError if ray was imported before with another setting, which it keeps until the process ends.
    """
    global _prepared_for
    alone = address is None
    if "ray" in sys.modules and _prepared_for is not alone:
        raise RunError(
            "ray was imported before, and it reads once on which addresses to listen: restart python and call "
            "run_grid first, either with an address or without"
        )
    _prepared_for = alone
    for name, value in ALWAYS.items():
        os.environ.setdefault(name, value)
    os.environ.update(SAFE | (ALONE if alone else {}))
