"""The view that writes `state.json` into the run folder every few seconds, so that `status` works on any machine."""

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from harness.runs.errors import RunError
from harness.runs.live import Tally
from harness.runs.record import now
from harness.runs.run import Run

EVERY_S = 3.0
SILENT_AFTER_S = 60.0  # a driver that has not written for this long has stopped, or its storage is unavailable


class Journal(Tally):
    """A tally that keeps `state.json` current from a thread of its own: slow storage must not delay the run.

    about  further content of `state.json`
    stop   called once when a stop was requested (`Run.request_stop`), or when the run was `lost`
    lost   whether another driver has taken the run over because this one seemed dead
    """

    def __init__(
        self,
        run: Run,
        about: Mapping[str, Any],
        stop: Callable[[], None] = lambda: None,
        lost: Callable[[], bool] = lambda: False,
    ):
        super().__init__()
        self._run, self._about, self._stop, self._lost = run, dict(about), stop, lost
        self._state, self._reason, self._beat, self._began = "starting", "", 0, now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="journal", daemon=True)
        self._thread.start()

    def begin(self, total: int, done: int, slots: int) -> None:
        with self.lock:
            super().begin(total, done, slots)
            self._state = "running"

    def end(self, interrupted: bool) -> None:
        """Record an interruption; the run itself ends with `close`, since a search has several rounds."""
        with self.lock:
            self._state = "interrupted" if interrupted else self._state

    def close(self, error: BaseException | None = None) -> None:
        """Write the last state and end the thread. `error`: the one that ended the run."""
        with self.lock:
            if isinstance(error, KeyboardInterrupt):
                self._state = "interrupted"
            elif error is not None:
                self._state, self._reason = "failed", _in_words(error)
            elif self._state != "interrupted":
                self._state = "ended"
        self._over.set()
        self._thread.join(timeout=10 * EVERY_S)

    def _keep(self) -> None:
        stopping = False
        while True:
            over = self._over.wait(EVERY_S if self._beat else 0)
            lost = self._lost()
            try:
                if not lost:
                    self._run.write_state(self._content())
                if not stopping and not over and (lost or self._run.stop_requested()):
                    stopping = True
                    self._stop()
            except (OSError, RunError):
                pass  # storage is unavailable: trials wait for it, and the next state may be written
            if over:
                return

    def _content(self) -> dict[str, Any]:
        with self.lock:
            clock = self.clock()
            self._beat += 1
            return {
                **self._about,
                "driver": f"process {os.getpid()} on {os.uname().nodename}",
                "state": self._state,
                **({"reason": self._reason} if self._reason else {}),
                "beat": self._beat,
                "began": self._began,
                "updated": now(),
                "total": self.total,
                "done": self.done,
                "slots": self.slots,
                "retried": self.retried,
                "time_left_s": self.time_left(),
                "spent_s": self.cost_s,
                "running": [
                    {
                        "id": running.trial.id,
                        "where": running.where,
                        "attempt": running.attempt,
                        "for_s": clock - running.since,
                        "epoch": running.epoch,
                        "epochs": running.epochs,
                        "loss": running.loss,
                        "score": running.score,
                    }
                    for running in self.running.values()
                ],
            }


def _in_words(error: BaseException) -> str:
    """Return one line about why a run ended."""
    if isinstance(error, BrokenPipeError):
        return "its output was closed by the program that read it"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
