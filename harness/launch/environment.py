"""What Ray reads when it is imported; set before the first import, and nowhere else.

A ray of this machine alone listens on the loopback interface. A cluster that was started elsewhere is joined as it
is; in both cases nobody gets in without its token.
"""

import os
import sys

from harness.record import RunError

ALWAYS = {
    "RAY_AUTH_MODE": "token",
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


def prepare(address: str | None = None) -> None:
    """Set the environment for a ray of this machine alone (None), or for joining the one at `address`.

    Raises RunError where ray was imported before with another setting, which it keeps until the process ends.
    """
    wanted = {**ALWAYS, **(ALONE if address is None else {})}
    if "ray" in sys.modules:
        for name in ("RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
            if os.environ.get(name) != wanted.get(name, os.environ.get(name)):
                raise RunError(
                    f"ray was imported before with {name}={os.environ.get(name)}; it reads that once: start python "
                    "anew and call run_grid first"
                )
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
