"""The status of a run: what is done, running and failed, how long the rest will take, and what it has cost.

It is read from the run folder alone, on any machine that sees the folder, during the run and afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.runs.journal import SILENT_AFTER_S
from harness.runs.record import Record
from harness.runs.run import Run

ALL_DONE = 60  # with more finished trials, only the latest are listed
LATEST = 20


@dataclass(frozen=True)
class Status:
    """The status of a run; `rows` are (trial, state, epoch, score, seconds)."""

    title: str
    rows: tuple[tuple[str, str, str, str, str], ...]
    sentences: tuple[str, ...]
    failed: int


def drives(run: Run) -> str | None:
    """Return the driver of the run; None if there is none, or if it has been silent for a minute."""
    state, age_s = run.state() or ({}, 0.0)
    return state["driver"] if _alive(state, age_s) else None


def _alive(state: dict[str, Any], age_s: float) -> bool:
    return state.get("state") in ("starting", "running") and age_s < SILENT_AFTER_S


def status(run: Run) -> Status:
    """Return the status of a run now."""
    records, search = run.records(), run.sub("search")
    failures = [*run.failures(), *search.failures()]
    done = {record.id for record in [*records, *search.records()]}
    state, age_s = run.state() or ({}, 0.0)
    alive = _alive(state, age_s)
    running = {trial["id"]: trial for trial in state.get("running", []) if alive and trial["id"] not in done}
    failed = [failure for failure in failures if failure.id not in running]
    planned = {trial.id for trial in run.requested().trials}
    waiting = sorted(planned - done - running.keys() - {failure.id for failure in failed})
    counts = {"done": len(records), "running": len(running), "failed": len(failed), "waiting": len(waiting)}
    title = f"{run.place}: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n or name == "done")
    latest = sorted(records, key=lambda record: record.finished, reverse=True)
    shown = latest if len(latest) <= ALL_DONE else latest[:LATEST]
    rows = [_running_row(trial) for trial in running.values()]
    rows += [(f.id, f"failed {f.attempts}x: {f.reason}", "", "", "") for f in failed]
    rows += [(r.id, "done", "", _headline(r), f"{r.cost.wall_s:.0f}") for r in shown]
    sentences = [*_driver(state, age_s, alive), *_times(state, alive, records)]
    if len(shown) < len(latest):
        sentences.insert(0, f"and {len(latest) - len(shown)} more done")
    return Status(title, tuple(rows), tuple(sentences), len(failed))


def _running_row(trial: dict[str, Any]) -> tuple[str, str, str, str, str]:
    place = f" on {trial['where']}" if trial["where"] else ""
    again = f", attempt {trial['attempt']}" if trial["attempt"] > 1 else ""
    epoch = f"{trial['epoch']}/{trial['epochs']}" if trial["epochs"] else ""
    return trial["id"], f"running{place}{again}", epoch, "", f"{trial['for_s']:.0f}"


def _driver(state: dict[str, Any], age_s: float, alive: bool) -> list[str]:
    """Return a sentence on the driver, or on how the last one ended."""
    if not state:
        return ["driver: none has run here yet, or only an old version"]
    name, seen = state["driver"], f"{max(age_s, 0):.0f} s ago"
    if alive:
        at = f", cluster {state['address']}" if state.get("address") else ""
        return [f"driver: {name}{at}, last seen {seen}"]
    if state["state"] in ("starting", "running"):
        return [
            f"driver: {name}, last seen {seen}: it died or its storage is unavailable; run the same command again to "
            "continue"
        ]
    ended = "stopped with an error" if state["state"] == "failed" else state["state"]
    reason = f": {state['reason']}" if state.get("reason") else ""
    return [f"driver: none; the last one, {name}, {ended} at {state['updated']}{reason}"]


def _times(state: dict[str, Any], alive: bool, records: Sequence[Record]) -> list[str]:
    """Return sentences on what the run has cost and, while it is running, on the time left."""
    sentences = [f"slot time so far: {_hours(sum(record.cost.wall_s for record in records))} in finished trials"]
    if alive:
        sentences[0] += f"; {_hours(state['spent_s'])} under this driver, including failed attempts"
        left, slots = state.get("time_left_s"), state["slots"]
        sentences.append(
            "time left: estimating"
            if left is None
            else f"time left: about {_hours(left)} on {slots} slot{'s' * (slots != 1)}"
        )
    return sentences


def _hours(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _headline(record: Record) -> str:
    metric, score = record.headline
    return f"{metric} {100 * score:.2f}"
