"""The rows of a block: its arms, with their state, reason and cost. Nothing is dropped.

Rows are grouped by loss, with the variants of a loss after it and floors last. Missing, failed and inapplicable arms
have a row with a state and a reason (FAIR-20).
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import registry
from harness.config import FLOORS, Arm
from harness.leaderboard.blocks import STEPS, Block
from harness.leaderboard.scores import FAILED


@dataclass
class Row:
    """A row while the leaderboard is computed.

    line      the values that its lines of the leaderboard share, by column
    records   lines of the scores, one per training seed
    """

    line: dict[str, Any]
    records: list[Any] = field(default_factory=list)

    @property
    def arm(self) -> str:
        return self.line["arm"]

    @property
    def floor(self) -> bool:
        return self.line["level"] == "floor"

    @property
    def variant(self) -> bool:
        """Whether the row is a variant of a baseline."""
        return self.line["baseline"] is not None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(record.seed for record in self.records)

    @property
    def parts(self) -> list[str]:
        """The ids of the stored records behind the row, one per seed or fold."""
        return [part for record in self.records for part in record.parts.splitlines()]


def rows_of(block: Block, planned: bool) -> list[Row]:
    """Return the rows of a block in order.

    planned: whether the entries include every expected seed; otherwise every trained row is expected to have all
    seeds of the block.
    """
    seeds = set() if planned else {entry.seed for entry in block.entries if entry.level != "floor"}
    groups: dict[tuple[str, str], dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for entry in block.entries:
        shared = {} if entry.tuned else _steps(entry)  # a search may give every arm different ones
        groups[entry.baseline, json.dumps(shared)][entry.arm].append(entry)
    losses = [loss for loss, _ in groups]
    for arm, _ in block.refused:
        if (loss := Arm.parse(arm).baseline) not in losses:
            groups[loss, "{}"] = {}
    rows = []
    for (loss, _), arms in sorted(groups.items(), key=lambda item: _group_order(*item[0])):
        refused = [(arm, reason) for arm, reason in block.refused if Arm.parse(arm).baseline == loss]
        rows += _group(loss, arms, seeds, refused, several=losses.count(loss) > 1)
    return rows


def step_sizes(steps: dict[str, Any]) -> str:
    """Return `lr 0.001, cosine` or `lr 0.001, × 0.1 every 10 epochs`."""
    step = f"× {steps['gamma']:g} every {steps['step_epochs']} epoch{'s' * (steps['step_epochs'] != 1)}"
    return f"lr {steps['lr']:g}, {step if steps['schedule'] == 'step' else steps['schedule']}"


def _steps(entry: Any) -> dict[str, Any]:
    return {} if entry.level == "floor" else {name: getattr(entry, name) for name in STEPS}


def _group_order(loss: str, steps: str) -> tuple[Any, ...]:
    return loss in FLOORS, FLOORS.index(loss) if loss in FLOORS else 0, loss, steps


def _group(
    loss: str,
    arms: dict[str, list[Any]],
    seeds: set[int],
    refused: Sequence[tuple[str, str]],
    several: bool,
) -> list[Row]:
    """Return the rows of a floor, or of one loss and set of step sizes. If `several`, names have step sizes."""
    steps = next((_steps(entries[0]) for entries in arms.values()), {})
    extra = f" ({step_sizes(steps)})" if several else ""
    rows = {arm: _row(entries, extra, seeds) for arm, entries in arms.items()}
    if loss not in rows:
        reason = "not run: its variants have no difference" if arms else "not run"
        rows[loss] = Row(_line(loss, loss, "baseline", extra, steps, "--", reason))
    for arm, reason in refused:
        if arm not in rows:
            rows[arm] = Row(_line(arm, loss, Arm.parse(arm).at, extra, steps, "n/a", reason))
    for row in rows.values():
        if row.variant:
            row.line |= _relative_costs(row, rows[loss])
    return sorted(rows.values(), key=_row_order)


def _row_order(row: Row) -> tuple[tuple[int, ...], str]:
    return registry.level_order(row.line["level"]), row.arm


def _row(entries: Sequence[Any], extra: str, expected: set[int]) -> Row:
    """Return the row of one arm. A second record of a seed is ignored here and mentioned in the notes."""
    first = entries[0]
    records = {entry.seed: entry for entry in reversed(entries) if entry.record is not None}
    missing = {entry.seed: entry for entry in reversed(entries) if entry.record is None and entry.seed not in records}
    failures = {seed: entry for seed, entry in sorted(missing.items()) if entry.state == FAILED}
    expected = {*(entry.seed for entry in entries), *(expected if first.level != "floor" else ())}
    lacking = [seed for seed in sorted(expected) if seed not in records and seed not in failures]
    reasons = _reasons(failures)
    if lacking:
        lacks = {entry.seed: entry.lacks for entry in missing.values() if entry.lacks}
        seed_list = ", ".join(f"{seed}{lacks.get(seed, '')}" for seed in lacking)
        reasons.append(("missing" if records or lacks else "not run yet") + f": seed {seed_list}")
    state = "ok" if not reasons else "partial" if records else "fail" if failures else "--"
    line = _line(first.arm, first.baseline, first.level, extra, _steps(first), state, "; ".join(reasons), expected)
    row = Row(line, [records[seed] for seed in sorted(records)])
    line |= {"seeds": _spaced(row.seeds), **_costs(row), "parameters": first_of(r.parameters for r in row.records)}
    line["records"] = " ".join(f"{r.seed}:{part}" for r in row.records for part in r.parts.splitlines()) or None
    return row


def _line(
    arm: str,
    loss: str,
    level: str,
    extra: str,
    steps: dict[str, Any],
    state: str,
    reason: str,
    expected: Iterable[int] = (),
) -> dict[str, Any]:
    """Return the values that the lines of a row share, by column."""
    alone = level in ("baseline", "floor")
    return {
        "arm": arm,
        "name": arm + extra if alone else arm.removeprefix(loss),
        "baseline": None if alone else loss,
        "loss": loss.partition("[")[0],
        "level": level,
        "state": state,
        "reason": reason or None,
        "expected_n": len(expected := sorted(expected)),
        "expected_seeds": _spaced(expected),
        **steps,
    }


def _reasons(failures: dict[int, Any]) -> list[str]:
    """Return why seeds failed, one sentence per reason: `seed 0, 1 failed 3x (out of memory: …)`."""
    seeds: dict[str, list[str]] = defaultdict(list)
    for seed, failure in failures.items():
        times = f" {failure.attempts}x" if failure.attempts > 1 else ""
        first_line = (failure.reason.strip().splitlines() or [""])[0].rstrip(".")
        kind = "" if failure.kind in ("error", "refused") else failure.kind
        seeds[f"failed{times} ({': '.join(filter(None, (kind, first_line))) or 'error'})"].append(str(seed))
    return [f"seed {', '.join(failed)} {why}" for why, failed in seeds.items()]


def _costs(row: Row) -> dict[str, float | None]:
    """Return mean training seconds and forward passes per step (None for floors), and mean peak memory."""
    trained = [] if row.floor else row.records
    return {
        "train_s": _mean([record.train_s for record in trained]),
        "forward_passes_per_step": _mean([record.forward_passes_per_step for record in trained]),
        "peak_gb": _mean([record.peak_gb for record in row.records if record.peak_gb is not None]),
    }


def _relative_costs(row: Row, baseline: Row) -> dict[str, float | None]:
    """Return the costs of a variant relative to its baseline, over the seeds that both have."""
    own, base = ({record.seed: record for record in each.records} for each in (row, baseline))
    both = sorted(own.keys() & base.keys())
    columns = {"relative_time": "train_s", "relative_passes": "forward_passes_per_step"}
    return {
        name: _ratio([getattr(own[s], cost) for s in both], [getattr(base[s], cost) for s in both])
        for name, cost in columns.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _ratio(own: Sequence[float], base: Sequence[float]) -> float | None:
    """Return the ratio of the totals; None unless the base is positive."""
    return math.fsum(own) / math.fsum(base) if math.fsum(base) > 0 else None


def first_of(values: Iterable[Any]) -> Any:
    """Return the first value; None if there is none."""
    return next(iter(values), None)


def _spaced(values: Iterable[int]) -> str | None:
    return " ".join(map(str, values)) or None
