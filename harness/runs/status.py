"""Where a run stands: what is done, what runs where, what failed and why, how long it will take and what it took.

Made from the run folder alone, so it can be asked on any machine that sees the folder, while the run goes on and
after.
"""

from dataclasses import dataclass
from typing import Any

from harness.runs.journal import SILENT_AFTER_S
from harness.runs.record import Record
from harness.runs.run import Run


def drives(run: Run) -> str | None:
    """Who drives the run now; None where nobody does, or has been heard of for a minute."""
    state, age_s = run.state() or ({}, 0.0)
    return state["driver"] if state.get("state") in ("starting", "running") and age_s < SILENT_AFTER_S else None


ALL_DONE = 60  # finished trials that are listed one by one; of more, the latest
LATEST = 20


@dataclass(frozen=True)
class Status:
    """What there is to say; `rows` are (trial, state, epoch, score, seconds)."""

    title: str
    rows: tuple[tuple[str, str, str, str, str], ...]
    sentences: tuple[str, ...]
    failed: int


def status(run: Run) -> Status:
    """Where a run stands now."""
    records, search = run.records(), run.sub("search")
    failures = [*run.failures(), *search.failures()]
    done = {record.id for record in [*records, *search.records()]}
    state, age_s = run.state() or ({}, 0.0)
    alive = state.get("state") in ("starting", "running") and age_s < SILENT_AFTER_S
    running = {some["id"]: some for some in state.get("running", []) if alive and some["id"] not in done}
    lost = [failure for failure in failures if failure.id not in running]
    planned = {trial.id for trial in run.asked().trials}
    waiting = sorted(planned - done - running.keys() - {failure.id for failure in lost})
    counts = {"done": len(records), "running": len(running), "failed": len(lost), "waiting": len(waiting)}
    title = f"{run.place}: " + ", ".join(f"{n} {what}" for what, n in counts.items() if n or what == "done")
    latest = sorted(records, key=lambda record: record.finished, reverse=True)
    shown = latest if len(latest) <= ALL_DONE else latest[:LATEST]
    rows = [_of_running(some) for some in running.values()]
    rows += [(f.id, f"failed {f.attempts}x: {f.reason}", "", "", "") for f in lost]
    rows += [(r.id, "done", "", _headline(r), f"{r.cost.wall_s:.0f}") for r in shown]
    sentences = [*_of_the_driver(state, age_s, alive), *_of_time(state, alive, records)]
    if len(shown) < len(latest):
        sentences.insert(0, f"and {len(latest) - len(shown)} more that are done")
    return Status(title, tuple(rows), tuple(sentences), len(lost))


def _of_running(some: dict[str, Any]) -> tuple[str, str, str, str, str]:
    place = f" on {some['where']}" if some["where"] else ""
    again = f", attempt {some['attempt']}" if some["attempt"] > 1 else ""
    epoch = f"{some['epoch']}/{some['epochs']}" if some["epochs"] else ""
    return some["id"], f"running{place}{again}", epoch, "", f"{some['for_s']:.0f}"


def _of_the_driver(state: dict[str, Any], age_s: float, alive: bool) -> list[str]:
    if not state:
        return ["no driver has run here since runs keep a state"]
    heard = f"heard of {max(age_s, 0):.0f} s ago"
    if alive:
        at = f", cluster {state['address']}" if state.get("address") else ""
        return [f"driver: {state['driver']}{at}, {heard}"]
    if state["state"] in ("starting", "running"):
        return [
            f"driver: {state['driver']} was last {heard}: it is gone, or has lost its storage; the same command "
            "continues"
        ]
    ended = "stopped with an error" if state["state"] == "failed" else state["state"]
    reason = f": {state['reason']}" if state.get("reason") else ""
    return [f"driver: none; the last one, {state['driver']}, {ended} at {state['updated']}{reason}"]


def _of_time(state: dict[str, Any], alive: bool, records) -> list[str]:
    finished = sum(record.cost.wall_s for record in records)
    said = [f"cost so far: {_hours(finished)} of slots in finished trials"]
    if alive:
        said[0] += f"; {_hours(state['spent_s'])} under this driver, failed attempts included"
        left = state.get("time_left_s")
        said.append(
            f"time left: about {_hours(left)} on {state['slots']} slots"
            if left is not None
            else "time left: estimating"
        )
    return said


def _hours(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.0f} min"
        if seconds >= 120
        else (f"{seconds:.0f} s")
    )


def _headline(record: Record) -> str:
    metric, score = record.headline
    return f"{metric} {100 * score:.2f}"
