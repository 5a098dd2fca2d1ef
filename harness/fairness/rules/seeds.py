"""Rules about seeds: rows have enough of them, and both rows of a difference have the same ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from harness.errors import first_few
from harness.fairness.rules import Results, rule
from harness.fairness.rules._subjects import ids

INTERVAL_FROM = 3  # seeds below which no interval is printed
MARKS_FROM = 5  # seeds below which no row is marked best and no difference significant


@rule("FAIR-11", "W", over="records")
def enough_seeds(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Enough seeds: ± from 3, dagger and bold from 5.

    Two seeds predict almost nothing about a third: the half-width of their t-interval is thirteen standard errors.
    """
    for table in results.tables:
        few: dict[int, list[str]] = defaultdict(list)
        for arm, by_seed in table.arms.items():
            if len(by_seed) < MARKS_FROM:
                few[len(by_seed)].append(arm)
        for n, arms in sorted(few.items()):
            which = "" if len(arms) == len(table.arms) else f" ({first_few(sorted(arms))})"
            missing = "an interval" if n < INTERVAL_FROM else "bold and dagger"
            concerned = [record for arm in arms for record in table.arms[arm].values()]
            yield f"{table.name} n={n}{which}: printed without {missing}.", ids(concerned)


@rule("FAIR-12", "W", over="records")
def paired_seeds(results: Results) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A difference is taken over the seeds that both arms have.

    A seed fixes split order, batches and initial weights, which affect both arms alike and cancel in the difference.
    """
    for table in results.tables:
        for arm, baseline in table.baselines.items():
            own, base = table.arms[arm].keys(), table.arms.get(baseline, {}).keys()
            if base and own != base:
                both = own & base
                used = f"using {_set(both)}" if both else "no difference"
                name = arm.removeprefix(baseline).lstrip("+@")
                seeds = f"baseline has seeds {_set(base)}, {name} {_set(own)}: {used}"
                yield f"{table.name}/{baseline}: {seeds}.", ids(table.arms[arm].values())


def _set(values: Iterable[int]) -> str:
    return "{" + ",".join(map(str, sorted(values))) + "}"
