"""Commands that read runs: status, logs, stop, report, power, trace, audit, verify, draw."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import CACHE, DEVICE, FAILED, OK, add_command, names, place, warn
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.runs.run import Run

RUN = "run folder"
TRIAL = "id of the trial, or a unique part of it"


def add_commands(commands) -> None:
    """Add the commands of this file."""
    command = add_command(commands, status, "status", "show which trials are done, running, failed or waiting")
    command.add_argument("run", type=place, help=RUN)

    command = add_command(commands, logs, "logs", "print the log of a trial, attempt by attempt")
    command.add_argument("run", type=place, help=RUN)
    command.add_argument("trial", help=TRIAL)

    command = add_command(commands, stop, "stop", "stop a run cleanly, from any machine that sees its folder")
    command.add_argument("run", type=place, help=RUN)

    command = add_command(commands, report, "report", "write the leaderboard of one or more run folders")
    command.add_argument(
        "runs", type=place, nargs="+", metavar="RUN", help="run folder; several are combined into one leaderboard"
    )
    command.add_argument(
        "--out", type=place, metavar="FOLDER", help="folder to write to (default: RUN, or RUN/only/… with --only)"
    )
    command.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="keep only rows such as dataset=cub200 or level=input",
    )
    command.add_argument(
        "--format",
        dest="formats",
        type=names,
        default=(),
        metavar="A,B",
        help="formats to write, such as latex, csv, parquet or figures (default: csv, markdown, latex and html)",
    )
    command.add_argument(
        "--metrics", type=names, default=(), metavar="A,B", help="metrics to print in tables (default: R@1,MAP@R)"
    )
    command.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder of the dataset, to show images that are not embedded",
    )
    command.add_argument("--cache", type=Path, metavar="FOLDER", help=CACHE)

    command = add_command(
        commands,
        power,
        "power",
        "show which differences can be detected, and how many seeds smaller ones need",
    )
    command.add_argument("runs", type=place, nargs="+", metavar="RUN", help=RUN)

    command = add_command(commands, trace, "trace", "list the records behind the numbers of an arm")
    command.add_argument("run", type=place, help=RUN)
    command.add_argument("arm", help="arm, such as contrastive+input")

    command = add_command(commands, audit, "audit", "check a run folder against the fairness rules")
    command.add_argument("run", type=place, nargs="?", help=RUN)
    command.add_argument("--rules", action="store_true", help="list the rules and the reasons for them")

    command = add_command(commands, verify, "verify", "recompute recorded scores from saved embeddings or weights")
    command.add_argument("run", type=place, help=RUN)
    command.add_argument("--only", default="", metavar="TEXT", help="verify only records whose id contains TEXT")
    command.add_argument(
        "--data", type=Path, metavar="FOLDER", help="folder of the dataset, needed to check saved weights"
    )
    command.add_argument("--cache", type=Path, metavar="FOLDER", help=CACHE)
    command.add_argument("--device", help=DEVICE)

    command = add_command(commands, draw, "draw", "draw the learning curves and the positivity of a finished trial")
    command.add_argument("run", type=place, help=RUN)
    command.add_argument("trial", help=TRIAL)
    command.add_argument(
        "--to", type=Path, metavar="FILE", help=".pdf, .svg or .png file (default: RUN/figures/TRIAL.pdf)"
    )


def existing(place: str | Path) -> "Run":
    """Return the run at a place. Raise RunError if there is none."""
    from harness.runs.errors import RunError
    from harness.runs.run import Run

    run = Run(place, warn=warn)
    if not run.exists():
        raise RunError(f"{run.place} is not a run folder: it has no records/")
    return run


def status(run: str | Path) -> int:
    """Print what is done, running and failed, how long the rest will take, and what the run has cost."""
    from harness.reports import terminal
    from harness.runs.status import status

    current = status(existing(run))
    terminal.table(current.title, ("trial", "state", "epoch", "score", "seconds"), current.rows)
    for sentence in current.sentences:
        print(sentence)
    return FAILED if current.failed else OK


def logs(run: str | Path, trial: str) -> int:
    """Print the log of a trial."""
    main = existing(run)
    search = main.sub("search")  # of a tuned grid
    run_of = {**dict.fromkeys(search.logged(), search), **dict.fromkeys(main.logged(), main)}
    name = _only_match(trial, sorted(run_of), main, "no logs; metrix-bench run writes one for each trial")
    print(run_of[name].log(name), end="")
    return OK


def _only_match(part: str, names: Sequence[str], run: "Run", nothing: str) -> str:
    """Return the one name that is `part` or contains it. Otherwise raise UserError with the names to choose from.

    `nothing` completes the message if there are no names.
    """
    matches = [name for name in names if name == part] or [name for name in names if part in name]
    if not names:
        raise UserError(f"{run.place} has {nothing}")
    if len(matches) != 1:
        listed = "\n  ".join(matches or names)
        count = f"{len(matches)} trials" if matches else "no trial"
        raise UserError(f"{part!r} matches {count} of {run.place}; choose one of\n  {listed}")
    return matches[0]


def stop(run: str | Path) -> int:
    """Request a run to stop; its driver notices within seconds."""
    from harness.runs.status import drives

    stopped = existing(run)
    if (driver := drives(stopped)) is None:
        print(f"{stopped.place}: no driver is running")
        return OK
    stopped.request_stop()
    print(f"{stopped.place}: requested {driver} to stop; the running trials keep their checkpoints")
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
    """Write the leaderboard files from the records of one run or several, and show the leaderboard."""
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

    collected = collection.collect(runs, only, warn=warn)
    if not collected.records and not collected.failures:
        print(f"no results yet in {' and '.join(map(str, runs))}")
        return
    board = filters.of_rows(collected.board(metrics), only or {})
    target.require_writable()
    board = gallery.with_gallery(board, collected, data, cache)
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
    """Print for every column the least difference that its seeds can detect, and the seeds that smaller ones need."""
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
    columns = ("table", "metric", "paired seeds", "comparisons", "std", "least", *targets)
    terminal.table("detectable differences in points, and the seeds needed for smaller ones", columns, rows)
    print("std: pooled standard deviation of the differences from the baselines; needs 3 paired seeds")
    print("least: smallest true difference detected with 80 % power at the 5 % level after Holm's correction")
    print("for 1.0, …: seeds needed to detect a difference of so many points under the same conditions")
    return OK


def trace(run: str | Path, arm: str) -> int:
    """Print the scores and the file of every record of an arm."""
    from harness.leaderboard.collection import collect, trace
    from harness.reports import terminal

    traced = trace(collect([run], warn=warn), arm)
    metrics = list(dict.fromkeys(metric for *_, scores, _ in traced for metric in scores))
    rows = [
        (dataset, backbone, seed, *(f"{100 * scores[m]:.4f}" if m in scores else "" for m in metrics), str(path))
        for dataset, backbone, _, seed, scores, path in traced
    ]
    terminal.table(arm, ("dataset", "backbone", "seed", *metrics, "record"), rows)
    return OK


def audit(run: str | Path | None, rules: bool) -> int:
    """Print what the fairness rules find, or with `rules` the rules; return 1 if they find an error."""
    from harness.fairness.rules import all_rules
    from harness.reports import terminal

    if rules:
        columns = ("rule", "", "requirement", "reason")
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
    print(f"\n{audited.place}: {counted} from {len(all_rules())} rules")
    return FAILED if errors else OK


def verify(run: str | Path, only: str, data: Path | None, cache: Path | None, device: str | None) -> int:
    """Print for every record whether its saved files give its scores; return 1 if one does not or lacks a file."""
    from harness.training.devices import rank_devices
    from harness.verify import verify

    rank_devices(1, device)
    verified = existing(run)
    verdicts = []
    for verdict in verify(verified, only, data, cache, device):
        print(f"{verdict.state:8} {verdict.id}: {verdict}", flush=True)
        verdicts.append(verdict)
    if not verdicts:
        named = f" and {only!r} in its id" if only else ""
        raise UserError(f"{verified.place} has no record with test scores{named}")
    good = sum(verdict.state == "matches" for verdict in verdicts)
    print(f"matching records: {good} of {len(verdicts)}")
    return OK if good == len(verdicts) else FAILED


def draw(run: str | Path, trial: str, to: Path | None) -> int:
    """Draw one trial and print the path of the figure."""
    from harness.reports.drawing import draw_trial

    source = existing(run)
    records = {record.id: record for record in source.records()}
    record = records[_only_match(trial, list(records), source, "no records yet")]
    drawn = draw_trial(record, to or source.folder / "figures" / f"{record.id}.pdf")
    if to is None:
        source.push(drawn)
    print(drawn if to else source.where(drawn))
    return OK
