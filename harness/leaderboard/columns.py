"""Every column of the two tables with its meaning, shared by the frames, the files and the schema document.

Fractions stay in [0, 1]; only reports print percent. Blank (NA, NaN) means unknown, never zero.
"""

import csv
import io
import itertools
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas

HERE = "measured here"


@dataclass(frozen=True)
class Column:
    """A column: its kind (text, category, integer, number, truth) and its meaning."""

    kind: str
    meaning: str


SCORES: dict[str, Column] = {
    "record": Column("text", "id of the record: records/<id>.json in its run folder"),
    "dataset": Column("category", "name of the dataset"),
    "backbone": Column("category", "name of the network"),
    "arm": Column("category", "the loss, with +level of what is around it; non-default settings in brackets"),
    "loss": Column("category", "name of the loss, or of the floor"),
    "level": Column("category", "baseline, embedding, feature, input, longer or floor"),
    "baseline": Column("category", "the same loss without a level"),
    "seed": Column("integer", "training seed"),
    "fold": Column("integer", "which part of the training classes validates, from 1; blank without cross-validation"),
    "metric": Column("category", "R@K, MAP@R or R-Precision, of the test split"),
    "value": Column("number", "test score, a fraction in [0, 1]"),
    "validation": Column("number", "validation score of the selected epoch"),
    "initial_validation": Column("number", "validation score before training, where the record has it"),
    "best_test_epoch": Column("number", "score of the best test epoch, where the protocol records it; chose nothing"),
    "selected_epoch": Column("integer", "epoch whose checkpoint was tested"),
    "lr": Column("number", "learning rate; blank for floors, like the other step sizes"),
    "schedule": Column("text", "how it changes"),
    "step_epochs": Column("integer", "epochs between steps of the learning rate, where the schedule has steps"),
    "gamma": Column("number", "factor of each of these steps"),
    "tuned": Column("truth", "whether a search chose the settings of the arm"),
    "train_s": Column("number", "seconds inside training steps"),
    "wall_s": Column("number", "seconds from start to record"),
    "steps": Column("integer", "training steps"),
    "images_seen": Column("integer", "images through the network in training, mixed ones apart"),
    "forward_passes_per_step": Column("number", "rows through the network ÷ batch size"),
    "peak_gb": Column("number", "peak memory"),
    "parameters": Column("integer", "parameters of the network"),
    "train_images": Column("integer", "images of the training split"),
    "validation_images": Column("integer", "images of the validation split"),
    "test_images": Column("integer", "images of the test split"),
    "train_classes": Column("integer", "classes of the training split"),
    "validation_classes": Column("integer", "classes of the validation split"),
    "test_classes": Column("integer", "classes of the test split"),
    "test_queries": Column("integer", "test images that ask and have a positive"),
    "test_excluded": Column("integer", "test images that ask and have none: they are left out"),
    "unlike": Column("text", "the benchmark whose counts this copy of the data does not have, `not CUB-200-2011`"),
    "content_fingerprint": Column("text", "digest of the pixels that the trial read"),
    "notes": Column("text", "what the trial noted, a sentence a line"),
    "grid": Column("text", "the grid it belongs to, with its version"),
    "finished": Column("text", "when it finished, UTC"),
    "trial": Column("text", "id of the trial; folds of a seed share it"),
}

FAMILIES: dict[str, str] = {
    "training.epochs, model.dim, images.side_px, protocol.name, evaluator, weights, …": (
        "the shared factors, by their names in a grid file: a table holds one value of each (FAIR-08, FAIR-25)"
    ),
    "loss.…": "the hyperparameters of the loss, such as loss.margin",
    "metrix.…": "how Metrix mixes, such as metrix.weight; blank for other arms",
    "rival.…": "the options of another level, such as rival.size; blank for other arms",
    "provenance.…": "where the record comes from, such as provenance.device and provenance.revision",
}

LEADERBOARD: dict[str, Column] = {
    "dataset": Column("category", "name of the dataset"),
    "backbone": Column("category", "name of the network"),
    "factors": Column("text", "what tells this table from others of the same dataset and network, name=value"),
    "arm": Column("category", "the loss, with +level of what is around it; non-default settings in brackets"),
    "baseline": Column("category", "the arm that differences are taken to; blank for baselines and floors"),
    "level": Column(
        "category", "baseline, embedding, feature, input, longer or floor; of published rows their own word"
    ),
    "metric": Column("category", "R@K, MAP@R or R-Precision, of the test split"),
    "source": Column("text", f"`{HERE}`, or who published the number; published ones enter no statistic"),
    "state": Column(
        "text", "ok, partial (seeds are missing), fail, -- (not run) or n/a (the level does not take the loss)"
    ),
    "reason": Column("text", "why the state is not ok"),
    "findings": Column("text", "what the fairness rules and its trials say of the row, a sentence each"),
    "n": Column("integer", "training seeds in the mean"),
    "expected_n": Column("integer", "training seeds that should be there"),
    "mean": Column("number", "mean over seeds, a fraction in [0, 1]"),
    "half": Column("number", "half width of the interval over seeds"),
    "low": Column("number", "lower end of it"),
    "high": Column("number", "upper end of it"),
    "std": Column("number", "standard deviation over seeds, ddof = 1"),
    "interval": Column("text", "what the interval is: method, level, n, over what"),
    "bootstrap_low": Column("number", "lower end of the bootstrap interval over seeds, from 5"),
    "bootstrap_high": Column("number", "upper end of it"),
    "both_low": Column("number", "lower end of the bootstrap interval over seeds and test classes, from 5 seeds"),
    "both_high": Column("number", "upper end of it"),
    "classes_low": Column("number", "lower end of the bootstrap interval over test classes alone, seeds held"),
    "classes_high": Column("number", "upper end of it"),
    "difference": Column("number", "mean paired difference to the baseline over common seeds"),
    "difference_half": Column("number", "half width of its interval"),
    "difference_low": Column("number", "lower end of it"),
    "difference_high": Column("number", "upper end of it"),
    "difference_n": Column("integer", "seeds that the arm and its baseline share"),
    "difference_seeds": Column("text", "these seeds, with spaces"),
    "difference_p": Column("number", "two-sided p of the paired t-test, not corrected"),
    "difference_p_holm": Column("number", "the same after Holm over all variants of the column, from 5 seeds"),
    "difference_interval": Column("text", "what the difference's interval is"),
    "significant": Column("truth", "whether the corrected p is at most 0.05 (†)"),
    "best": Column("truth", "whether it is the highest mean of its column or not separable from it (bold)"),
    "second": Column("truth", "whether it is the second highest distinct mean of its column (underlined)"),
    "rank": Column("integer", "rank of the mean among the table's trained rows, 1 the best; equal means share it"),
    "rank_low": Column("integer", "best rank that the seeds do not exclude, 95 % for all rows together"),
    "rank_high": Column("integer", "worst rank that the seeds do not exclude"),
    "train_s": Column("number", "mean seconds inside training steps"),
    "relative_time": Column("number", "the same over that of the baseline"),
    "forward_passes_per_step": Column("number", "rows through the network ÷ batch size"),
    "relative_passes": Column("number", "the same over that of the baseline"),
    "peak_gb": Column("number", "mean peak memory"),
    "parameters": Column("integer", "parameters of the network"),
    "lr": Column("number", "learning rate"),
    "schedule": Column("text", "how it changes"),
    "values_by_seed": Column("text", "seed:value of every seed, with spaces"),
    "records": Column("text", "seed:id of the records behind the numbers, with spaces"),
    "block": Column("integer", "number of the table, from 1: lines of one number may be compared"),
    "row": Column("integer", "number of the row in its table, from 1"),
    "name": Column("text", "what a table prints: variants are short, because they stand under their loss"),
    "loss": Column("text", "name of the loss, or of the floor"),
    "seeds": Column("text", "training seeds that have a record, with spaces"),
    "expected_seeds": Column("text", "training seeds that should have one"),
    "step_epochs": Column("integer", "epochs between steps of the learning rate"),
    "gamma": Column("number", "factor of each of these steps"),
    "difference_std": Column("number", "standard deviation of the paired differences, ddof = 1"),
    "difference_both_low": Column("number", "lower end of the difference's interval over seeds and test classes"),
    "difference_both_high": Column("number", "upper end of it"),
    "compared": Column("truth", "whether the row takes part in the tests behind bold"),
    "best_p_holm": Column("number", "p against the highest mean of the column after Holm; blank for that one itself"),
    "below_start": Column("truth", "whether training left the row below its own starting point (‡)"),
    "inflation": Column("number", "best test epoch minus the reported one, where records know it"),
    "inflation_n": Column("integer", "records that know it"),
}

_DTYPES = {"text": "string", "integer": "Int64", "number": "float64", "truth": "boolean"}


def frame(lines: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]) -> pandas.DataFrame:
    """Return lines as a DataFrame with these columns in order. Missing values are blank."""
    return pandas.DataFrame({name: typed([line.get(name) for line in lines], c.kind) for name, c in columns.items()})


def typed(values: Sequence[Any], kind: str) -> Any:
    """Return values as an array of a kind; None is blank."""
    if kind == "category":
        return pandas.Categorical(values, categories=sorted({value for value in values if value is not None}))
    return pandas.array(values, _DTYPES[kind]) if kind != "number" else pandas.Series(values, dtype="float64").array


def guessed(values: Sequence[Any]) -> Any:
    """Return settings as an array of their kind: text for tuples, objects if kinds are mixed."""
    values = [str(value) if isinstance(value, tuple | list | dict) else value for value in values]
    types = {type(value) for value in values if value is not None}
    kinds = {bool: "truth", int: "integer", float: "number", str: "text"}
    if len(types) < 2 and (kind := kinds.get(next(iter(types), str))):
        return typed(values, kind)
    return pandas.Series(values, dtype=object).array


def ordered(values: Sequence[Any], categories: Iterable[Any]) -> pandas.Categorical:
    """Return values as ordered categories; sorting, grouping and pivoting keep the order. None is blank."""
    present = {value for value in values if value is not None}
    used = [category for category in dict.fromkeys(categories) if category in present]
    return pandas.Categorical(values, categories=used, ordered=True)


def lines(table: pandas.DataFrame | Any, names: Sequence[str] = ()) -> list[Any]:
    """Return the lines of a frame as named tuples of plain values; None for a blank."""
    names = list(names or table.columns)
    columns = [plain(table[name]) for name in names]
    return list(map(namedtuple("Line", names)._make, zip(*columns, strict=True))) if len(table) else []


def plain(column: pandas.Series | Any) -> list[Any]:
    """Return a column as a list of plain values; None for a blank."""
    if column.dtype == "float64":
        return [None if value != value else value for value in column.tolist()]  # NaN differs from itself
    values = column.astype(object)
    return values.where(column.notna(), None).tolist()


def as_csv(table: pandas.DataFrame | Any, varying: Sequence[str] = ()) -> str:
    """Return a frame as CSV: unknown values are blank, truths are 1 and 0, numbers have full precision.

    varying: the adjacent columns in which the lines of a record differ. The other columns are formatted once per
    record, which takes a fifth of the time.
    """
    names = list(table)
    start = names.index(varying[0]) if varying else 0
    rows = _rows(table.iloc[:, start : start + len(varying)] if varying else table)
    if varying:
        places, _ = pandas.factorize(table["record"])
        records = table.drop_duplicates("record")
        before, after = _rows(records.iloc[:, :start]), _rows(records.iloc[:, start + len(varying) :])
        rows = [f"{before[place]},{row},{after[place]}" for place, row in zip(places.tolist(), rows, strict=True)]
    return "\n".join([*_rows(pandas.DataFrame([names])), *rows, ""])


def _rows(table: pandas.DataFrame) -> list[str]:
    """Return each line of a frame as CSV, without a line break."""
    columns = (table[name].astype("Int64") if table[name].dtype == "boolean" else table[name] for name in table)
    text = io.StringIO()
    writer, ends = csv.writer(text, lineterminator=""), [0]
    for line in zip(*map(plain, columns), strict=True):
        writer.writerow(line)
        ends.append(text.tell())
    whole = text.getvalue()
    return [whole[start:end] for start, end in itertools.pairwise(ends)]


def as_parquet(table: pandas.DataFrame | Any) -> bytes:
    """Return a frame as a Parquet file; equal frames give equal bytes."""
    mixed = {name: "string" for name in table if table[name].dtype == object}
    return table.astype(mixed).to_parquet(index=False)
