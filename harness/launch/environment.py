"""What Ray reads when it is imported; set before the first import, and nowhere else.

A ray of this machine alone listens on the loopback interface. A cluster that was started elsewhere is joined as it
is; in both cases nobody gets in without its token.
"""

import os
import sys

from harness.runs.errors import RunError

SAFE = {"RAY_AUTH_MODE": "token"}  # whatever the environment says
ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # its kill aborts the whole grid; the kernel's is an ordinary retry
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # the queue knows how many there is room for
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state is never read back, and grows with every trial
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: all listeners on 127.0.0.1, on Linux too
}
CLIENT = "ray://"
_prepared_for: bool | None = None  # a ray of this machine alone (True) or a cluster (False), once that is settled


def prepare(address: str | None = None) -> None:
    """Set the environment for a ray of this machine alone (None), or for joining the one at `address`.

    Raises RunError where ray was imported before with another setting, which it keeps until the process ends.
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
