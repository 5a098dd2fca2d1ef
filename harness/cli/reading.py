"""Commands that read runs: status, logs, stop, report, power, trace, audit, verify, draw."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import CACHE, DEVICE, FAILED, OK, add_command, names, place, warn
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.runs.run import Run

RUN = "run folder"
TRIAL = "the trial's id, or a part of it that no other has"


def add_commands(commands) -> None:
    """Add the commands of this file."""
    command = add_command(commands, status, "status", "show what of a run is done, running, failed or waiting")
    command.add_argument("run", type=place, help="run folder, from any machine that sees it")

    command = add_command(commands, logs, "logs", "print the log of a trial, attempt by attempt")
    command.add_argument("run", type=place, help=RUN)
    command.add_argument("trial", help=TRIAL)

    command = add_command(commands, stop, "stop", "ask the driver of a run, on whatever machine, to stop cleanly")
    command.add_argument("run", type=place, help=RUN)

    command = add_command(commands, report, "report", "write the leaderboard of run folders again")
    command.add_argument(
        "runs", type=place, nargs="+", metavar="RUN", help="run folder; several become one leaderboard"
    )
    command.add_argument("--out", type=place, help="folder to write to (default: RUN, or RUN/only/… with --only)")
    command.add_argument(
        "--only", action="append", default=[], metavar="KEY=A,B", help="such as dataset=cub200 or level=input"
    )
    command.add_argument(
        "--format",
        dest="formats",
        type=names,
        default=(),
        metavar="A,B",
        help="such as latex, csv, parquet, figures (default: the usual)",
    )
    command.add_argument(
        "--metrics", type=names, default=(), metavar="A,B", help="metrics that tables print (default: R@1,MAP@R)"
    )
    command.add_argument("--data", type=Path, help="folder of the dataset, to show images of those not embedded")
    command.add_argument("--cache", type=Path, help=CACHE)

    command = add_command(
        commands, power, "power", "show what differences the seeds of runs can detect, and how many seeds others need"
    )
    command.add_argument("runs", type=place, nargs="+", metavar="RUN", help=RUN)

    command = add_command(commands, trace, "trace", "list the records behind the numbers of an arm")
    command.add_argument("run", type=place, help=RUN)
    command.add_argument("arm", help="such as contrastive+input")

    command = add_command(commands, audit, "audit", "print what the fairness rules find in a run folder")
    command.add_argument("run", type=place, nargs="?", help=RUN)
    command.add_argument("--rules", action="store_true", help="list the rules with their reasons")

    command = add_command(commands, verify, "verify", "recompute recorded scores from saved embeddings or weights")
    command.add_argument("run", type=place, help=RUN)
    command.add_argument("--only", default="", metavar="TEXT", help="only records with this in their id")
    command.add_argument("--data", type=Path, help="folder of the dataset, where weights were kept")
    command.add_argument("--cache", type=Path, help=CACHE)
    command.add_argument("--device", help=DEVICE)

    command = add_command(commands, draw, "draw", "draw the learning curves of a finished trial, and its positivity")
    command.add_argument("run", type=place, help=RUN)
    command.add_argument("trial", help=TRIAL)
    command.add_argument("--to", type=Path, help="a .pdf, .svg or .png file (default: RUN/figures/TRIAL.pdf)")


def existing(place: str | Path) -> "Run":
    """Return the run at a place. Raise RunError where there is none."""
    from harness.runs.errors import RunError
    from harness.runs.run import Run

    run = Run(place, warn=warn)
    if not run.exists():
        raise RunError(f"{run.place} is not a run folder: it has no records/")
    return run


def status(run: str | Path) -> int:
    """Print what a run has done, what runs where, what failed and why, how long it will take and what it took."""
    from harness.reports import terminal
    from harness.runs.status import status

    found = status(existing(run))
    terminal.table(found.title, ("trial", "state", "epoch", "score", "seconds"), found.rows)
    for sentence in found.sentences:
        print(sentence)
    return FAILED if found.failed else OK


def logs(run: str | Path, trial: str) -> int:
    """Print the log of a trial."""
    finals = existing(run)
    search = finals.sub("search")  # of a tuned grid
    home = {**dict.fromkeys(search.logged(), search), **dict.fromkeys(finals.logged(), finals)}
    name = _only_one(trial, sorted(home), finals, "no log; metrix-bench run writes one of every trial")
    print(home[name].log(name), end="")
    return OK


def _only_one(part: str, names: Sequence[str], run: "Run", nothing: str) -> str:
    """Return the one name that is `part` or contains it. Raise UserError with those to choose from otherwise.

    `nothing` is what to say where there are no names.
    """
    found = [name for name in names if name == part] or [name for name in names if part in name]
    if not names:
        raise UserError(f"{run.place} holds {nothing}")
    if len(found) != 1:
        listed = "\n  ".join(found or names)
        count = f"{len(found)} trials" if found else "no trial"
        raise UserError(f"{part!r} names {count} of {run.place}; name one of\n  {listed}")
    return found[0]


def stop(run: str | Path) -> int:
    """Ask a run to stop; its driver sees it within seconds."""
    from harness.runs.status import drives

    asked = existing(run)
    if (driver := drives(asked)) is None:
        print(f"{asked.place}: nothing runs here")
        return OK
    asked.request_stop()
    print(f"{asked.place}: {driver} was asked to stop; it keeps what the running trials have done so far")
    return OK


def report(
    runs: Sequence[str | Path],
    out: str | Path | None,
    only: Sequence[str],
    formats: Sequence[str],
    metrics: Sequence[str],
    data: Path | None,
    cache: Path | None,
) -> int:
    """Write the leaderboard files from the records of one run or several, and show it."""
    from harness.leaderboard.filters import parse
    from harness.runs.run import Run

    filters = parse(only)
    if len(runs) > 1 and out is None:
        raise UserError("a report of several runs needs a folder to write to: --out FOLDER")
    target = Run(out or runs[0])
    if filters and out is None:
        name = "-".join(f"{key}={','.join(values)}" for key, values in filters.items())
        target = target.sub(f"only/{name.replace('/', '_')}")
    for folder in runs:
        existing(folder)
    target.require_own(("leaderboard.", "scores.", "figures"))
    write_leaderboard(runs, target, filters, formats, metrics, data, cache)
    return OK


def write_leaderboard(
    runs: Sequence[str | Path],
    target: "Run",
    only: dict[str, list[str]] | None = None,
    formats: Sequence[str] = (),
    metrics: Sequence[str] = (),
    data: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Write the leaderboard of runs into a folder or bucket, and show it."""
    from harness import reports
    from harness.leaderboard import collection, filters
    from harness.reports import gallery, terminal

    found = collection.collect(runs, only, warn=warn)
    if not found.records and not found.failures:
        print(f"{' and '.join(map(str, runs))} holds no results yet")
        return
    board = filters.of_rows(found.board(metrics), only or {})
    target.require_writable()
    board = gallery.with_gallery(board, found, data, cache)
    written = reports.write_all(board, target.folder, formats)
    for path in (*target.folder.glob("leaderboard.*"), *target.folder.glob("scores.*"), *written):
        target.push(path)
    terminal.show(board)
    print("written: " + "  ".join(target.where(path) for path in written))
    for path in written:
        if path.suffix == reports.find("latex").SUFFIX and reports.find("latex").cites(board):
            print(reports.find("latex").CITED)
        if path.suffix == reports.find("web").SUFFIX:
            print(f"open {target.where(path)} in a browser")


def power(runs: Sequence[str | Path]) -> int:
    """Print, for every column, the least difference its seeds can detect and the seeds that smaller ones need."""
    from harness.leaderboard import comparisons
    from harness.leaderboard.collection import collect
    from harness.reports import terminal

    def points(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.2f}"

    rows = []
    for block in collect(runs, warn=warn).board().blocks:
        for summary in (block.summaries[metric] for metric in block.shown):
            plan = ["–" if seeds is None else seeds for seeds in comparisons.plan(summary)]
            known = (summary.seeds, summary.comparisons, points(summary.spread), points(summary.least))
            rows.append((block.heading, summary.metric, *known, *plan))
    targets = [f"for {100 * target:.1f}" for target in comparisons.TARGETS]
    columns = ("table", "metric", "paired seeds", "comparisons", "spread", "least", *targets)
    terminal.table("what seeds can show, in points; the last columns: seeds needed", columns, rows)
    print("spread: standard deviation of the differences to the own baseline, pooled; it needs 3 paired seeds")
    print("least: the true difference found with a chance of 80 % at 5 % after Holm; seeds needed are for the same")
    return OK


def trace(run: str | Path, arm: str) -> int:
    """Print the scores of every record of an arm and the file that holds it."""
    from harness.leaderboard.collection import collect, trace
    from harness.reports import terminal

    found = trace(collect([run], warn=warn), arm)
    metrics = list(dict.fromkeys(metric for *_, scores, _ in found for metric in scores))
    rows = [
        (dataset, backbone, seed, *(f"{100 * scores[m]:.4f}" if m in scores else "" for m in metrics), str(path))
        for dataset, backbone, _, seed, scores, path in found
    ]
    terminal.table(arm, ("dataset", "backbone", "seed", *metrics, "record"), rows)
    return OK


def audit(run: str | Path | None, rules: bool) -> int:
    """Print what the fairness rules find, or with `rules` the rules; 1 where a row may not stand."""
    from harness.fairness.rules import found as all_rules
    from harness.reports import terminal

    if rules:
        columns = ("rule", "", "demand", "reason")
        terminal.table("fairness rules", columns, [(r.id, r.severity, r.title, r.reason) for r in all_rules()])
        return OK
    if run is None:
        raise UserError("audit needs a run folder, or --rules")
    from harness.audit import audit

    audited = existing(run)
    findings = audit(audited)
    for rule in all_rules():
        if of_rule := [finding for finding in findings if finding.rule == rule.id]:
            print(f"\n{rule.id}  {rule.title}.")
            for finding in of_rule:
                print(f"  {finding.severity}  {finding.sentence}")
    errors = sum(finding.severity == "E" for finding in findings)
    counts = ((errors, "error"), (len(findings) - errors, "warning"))
    counted = ", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in counts)
    print(f"\n{audited.place}: {counted} of {len(all_rules())} rules")
    return FAILED if errors else OK


def verify(run: str | Path, only: str, data: Path | None, cache: Path | None, device: str | None) -> int:
    """Print for every record whether what was kept gives its scores; 1 where one does not or a file is missing."""
    from harness.training.devices import rank_devices
    from harness.verify import verify

    rank_devices(1, device)
    verified = existing(run)
    verdicts = []
    for verdict in verify(verified, only, data, cache, device):
        print(f"{verdict.state:8} {verdict.id}: {verdict}", flush=True)
        verdicts.append(verdict)
    if not verdicts:
        named = f" with {only!r} in its id" if only else ""
        raise UserError(f"{verified.place} has no record of a test{named}")
    good = sum(verdict.state == "matches" for verdict in verdicts)
    print(f"{good} of {len(verdicts)} match")
    return OK if good == len(verdicts) else FAILED


def draw(run: str | Path, trial: str, to: Path | None) -> int:
    """Draw one trial and print where."""
    from harness.reports.drawing import draw_trial

    source = existing(run)
    records = {record.id: record for record in source.records()}
    record = records[_only_one(trial, list(records), source, "no record yet")]
    drawn = draw_trial(record, to or source.folder / "figures" / f"{record.id}.pdf")
    if to is None:
        source.push(drawn)
    print(drawn if to else source.where(drawn))
    return OK
