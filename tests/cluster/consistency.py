"""The consistency check of a run folder after a run has ended, whatever faults were injected."""

import json
import os
from pathlib import Path

from harness.runs.run import Run


def records(folder: Path) -> dict[str, dict]:
    """Return the records by trial id."""
    return {p.stem: json.loads(p.read_text()) for p in sorted((folder / "records").glob("*.json"))}


def scores(folder: Path) -> dict[str, dict]:
    """Return what must not depend on when, where or how often a trial ran."""
    keys = ("test", "validation", "selected_epoch")
    return {
        name: {**{k: r[k] for k in keys}, "curve": [(e["loss"], e["validation"]) for e in r["curve"]]}
        for name, r in records(folder).items()
    }


def inconsistencies(folder: Path) -> list[str]:
    """Return everything that is wrong in a finished run folder, as sentences."""
    run, found = Run(folder, warn=lambda sentence: None), []
    planned, done = {trial.id for trial in run.requested().trials}, set(records(folder))
    found += [f"no record: {trial}" for trial in sorted(planned - done)]
    found += [f"a record without a trial: {name}" for name in sorted(done - planned)]
    found += [f"failed: {failure.id}: {failure.reason}" for failure in run.failures()]
    found += [f"left over: {path}" for path in folder.rglob("*") if path.name.endswith((".part", ".tmp"))]
    found += [f"checkpoint left: {path}" for path in folder.glob("checkpoints/*/*.safetensors")]
    ledger, reads = folder / "ledger.jsonl", {}
    for line in ledger.read_text().splitlines() if ledger.exists() else []:
        entry = json.loads(line)
        reads.setdefault(entry["cell"], set()).add(entry["checkpoint"])
    found += [f"test read for {len(each)} checkpoints: {cell}" for cell, each in reads.items() if len(each) > 1]
    return found


def workers(mark: str) -> list[int]:
    """Return the processes with `mark` that train."""
    found = []
    for pid in processes(mark):
        try:
            if "Trainable" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
        except OSError:
            continue
    return sorted(found)


def processes(mark: str) -> list[int]:
    """Return the processes whose environment contains `mark`, except this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                if alive and mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
