"""Rules about what a table may claim: intervals, bold, rank tests, averages, and published numbers."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator

from harness.errors import first_few
from harness.fairness.rules import Number, Table, rule

METHOD = re.compile(r"\d+(\.\d+)? % .*interval.* over (?P<n>\d+) \w+")


@rule("FAIR-13", "E", over="table")
def interval_is_named(table: Table) -> Iterator[tuple[str, tuple[str, ...]]]:
    """An interval states its method, level, n, and what it is over.

    ± may be a standard deviation, a standard error or an interval, over seeds, folds or queries. For the same runs
    these differ by a factor of up to ten.
    """
    for number in table.numbers:
        if number.half is None or number.source is not None:
            continue
        method = METHOD.search(number.method)
        name = f"{number.column} {number.row}: ± {100 * number.half:.2g}"
        if not method:
            yield f"{name} does not state method, level, n and what it is over ({number.method or 'nothing'}).", ()
        elif int(method["n"]) != number.n:
            yield f"{name} states {number.method!r}, but n is {number.n}.", ()


@rule("FAIR-14", "W", over="table")
def best_is_tested(table: Table) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Bold needs a test corrected for the number of comparisons, and marks all rows not separable from the best.

    Of many equal rows one has the highest mean by chance, so setting only that one in bold reports chance.
    """
    for column, numbers in _columns(table).items():
        bold = [number for number in numbers if number.bold]
        if not bold:
            continue
        best = max(numbers, key=lambda number: number.mean)
        head = f"{column}: best {100 * best.mean:.1f}"
        if not table.correction:
            marked = f"{len(bold)} row{'s' * (len(bold) > 1)} in bold"
            yield f"{head}; {marked} without a test corrected for the number of comparisons.", ()
            continue
        equal = [n for n in numbers if n is not best and (n.p is None or math.isnan(n.p) or n.p > table.level)]
        rows = f"{len(equal)} row{'s' * (len(equal) != 1)} not separable ({table.correction}, {table.level:g})"
        if equal:
            yield f"{head}; {rows}.", ()
        unmarked = [number.row for number in (best, *equal) if not number.bold]
        if unmarked:
            yield f"{head}; {rows}, of which not in bold: {first_few(unmarked)}.", ()
        wrong = [number.row for number in bold if number is not best and number not in equal]
        if wrong:
            yield f"{head}; in bold though separable from it: {first_few(wrong)}.", ()


@rule("FAIR-15", "E", over="table")
def enough_datasets(table: Table) -> Iterator[tuple[str, tuple[str, ...]]]:
    """No rank test over too few datasets.

    With n datasets the smallest two-sided p of a signed-rank test is 2/2ⁿ, so over four datasets no difference can be
    significant.
    """
    for test in table.rank_tests:
        least = 2 / 2**test.datasets
        if least > table.level:
            p = f"the smallest two-sided p is {least:g}, above {table.level:g}"
            yield f"{table.name}: {test.name} test over {test.datasets} datasets: {p}.", ()


@rule("FAIR-21", "E", over="table")
def equal_averages(table: Table) -> Iterator[tuple[str, tuple[str, ...]]]:
    """No average over unequal sets of datasets.

    A row that was not run on the hardest dataset would have the highest mean.
    """
    sets: dict[frozenset[str], list[str]] = defaultdict(list)
    for average in table.averages:
        sets[average.datasets].append(average.row)
    if len(sets) > 1:
        listed = "; ".join(f"{first_few(rows)} over {', '.join(sorted(over))}" for over, rows in sets.items())
        yield f"{table.name}: averages over unequal sets of datasets: {listed}.", ()


@rule("FAIR-24", "E", over="table")
def published_is_apart(table: Table) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Published numbers are shown as published: greyed, cited, never bold, never in a difference.

    They come from other code, splits and selections, so two papers differ by more than two rows of one paper.
    """
    published = {number.row for number in table.numbers if number.source is not None}
    for number in table.numbers:
        faults = []
        if number.source is not None:
            faults += (
                ["not cited"] * (not number.source) + ["in bold"] * number.bold + ["not grey"] * (not number.grey)
            )
        if number.minus in published or (number.minus is not None and number.source is not None):
            faults.append(f"in a difference with {number.minus}")
        if faults:
            yield f"{number.column} {number.row}: a published number is {' and '.join(faults)}.", ()


def _columns(table: Table) -> dict[str, list[Number]]:
    """Return the measured numbers of every column that are compared, without differences."""
    columns: dict[str, list[Number]] = defaultdict(list)
    for number in table.numbers:
        if number.ranked and number.source is None and number.minus is None:
            columns[number.column].append(number)
    return columns
