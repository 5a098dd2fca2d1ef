"""The command line: `metrix-bench run quick`. Every option is a setting of the grid or a place on disk."""

import argparse
import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.config import Images, Trial
from harness.data.cache import default_folder
from harness.errors import GridError, UserError
from harness.grid import Grid
from harness.grids import overrides, shipped, texts
from harness.runs import storage
from harness.runs.record import Record, Run, RunError, differences

if TYPE_CHECKING:
    from harness.launch.plan import Plan
    from harness.training.trial import Sources

OK, FAILED, WRONG_INPUT, INTERRUPTED, CLOSED = 0, 1, 2, 130, 141
LISTS = ("losses", "levels", "backbones", "datasets", "arms", "seeds")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 a trial failed or a fault of the program, 2 wrong input, 130
    interrupted, 141 nobody reads what it prints.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a sign that the terminal lacks must not cost what was computed
    words = sys.argv[1:] if words is None else words
    arguments = _read(words)
    arguments.words = words
    try:
        code = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("metrix-bench: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or python would complain once more when it ends
        return CLOSED
    except Exception as error:
        sentence = _sentence(error, arguments)
        if arguments.debug or sentence is None:
            traceback.print_exc()
        print(f"metrix-bench: {sentence or FAULT}", file=sys.stderr)
        return FAILED if sentence is None else WRONG_INPUT


def _read(words: Sequence[str]) -> argparse.Namespace:
    """The words of a command line as arguments; SystemExit after a sentence where they cannot be."""
    top = parser()
    for before, word in pairwise((top.prog, *words)):
        option = re.fullmatch(r"(--\w+)=\s*", word)
        if option or not word.strip():
            top.error(f"the value after {option[1] if option else before} is empty; name one, or leave it out")
    arguments, strange = top.parse_known_args(words)
    if strange:
        command = arguments.parser
        options = [option for option in command._option_string_actions if option.startswith("--")]
        word = strange[0].partition("=")[0]
        stray = f"{word!r} is one word too many"
        command.error(registry.unknown("option", word, options) if word.startswith("-") else stray)
    return arguments


class _Once(argparse.Action):
    """Keep the value of an option; one that is given twice is refused, of which the first would be dropped."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = namespace.__dict__.setdefault("given", set())
        if option_string is not None and self.dest in given:
            raise argparse.ArgumentError(self, "it is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


FAULT = "this is a bug in metrix-bench and not in what you typed: please report it with the lines above"


def _sentence(error: Exception, arguments: argparse.Namespace) -> str | None:
    """What the user can do about an error, in words; None for a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError):
        return None
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (isinstance(error.filename, str) and _is_named(Path(error.filename), arguments)):
        return f"{error.filename or 'the disk'}: {error.strerror}"
    return None


def _is_named(path: Path, arguments: argparse.Namespace) -> bool:
    """Whether a path is in or above one that the command line names, the folder of runs, or the cache."""
    given = [value for key, value in vars(arguments).items() if key != "words"]
    values = [item for value in given for item in (value if isinstance(value, list) else [value])]
    places = [Path(value) for value in values if isinstance(value, str | Path)]
    path = Path(os.path.abspath(path))
    for place in map(os.path.abspath, (*places, "results/runs", default_folder())):
        if path.is_relative_to(place) or Path(place).is_relative_to(path):
            return True
    return False


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="metrix-bench", description="A fair benchmark of deep metric learning.")
    top.add_argument("--debug", action="store_true", help="show where in the program an error was raised")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _commands_that_run(commands)
    _commands_that_read_runs(commands)
    _commands_about_data(commands)
    return top


def _commands_that_run(commands) -> None:
    run = _command(commands, run_command, "run", "run what a grid lacks, then write its leaderboard")
    _grid_options(run)
    run.add_argument("--out", type=_place, help="run folder, or s3://bucket/prefix (default: results/runs/GRID)")
    run.add_argument("--track", metavar="A,B", help="show curves in tensorboard, wandb or mlflow (default: nowhere)")
    _cluster_options(run)

    plan = _command(commands, plan_command, "plan", "say what a grid would run and what it would cost")
    _grid_options(plan)
    plan.add_argument(
        "--out", type=_place, help="run folder whose records count as done (default: results/runs/GRID)"
    )

    trial = _command(commands, trial_command, "trial", "run one arm of a grid in this process, without ray")
    _grid_options(trial)
    trial.add_argument("--arm", required=True, help="such as contrastive or 'multi_similarity+embedding'")
    trial.add_argument("--seed", type=_whole(0, 2**32 - 1), default=0)
    trial.add_argument("--fold", type=_whole(1), help="only this of the grid's folds, from 1 (default: all of them)")
    trial.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU where there is one)")
    trial.add_argument(
        "--ranks",
        type=_whole(1),
        default=1,
        help="GPUs, or processes without one, that share each batch (default: 1)",
    )
    trial.add_argument("--out", type=_place, help="run folder, or s3://bucket/prefix (default: results/runs/GRID)")

    retry = _command(commands, retry_command, "retry", "run trials of a run folder again that failed")
    retry.add_argument("run", type=_place, help="run folder")
    retry.add_argument("--failed", action="store_true", help="all that failed (or name some with --only)")
    retry.add_argument("--only", default="", metavar="TEXT", help="those with this in their id")
    retry.add_argument("--data", type=Path, help="folder of the dataset, for those that are not embedded")
    retry.add_argument("--cache", type=Path, help="folder for decoded images (default: ~/.cache/metrix-bench)")
    _cluster_options(retry)


def _cluster_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--address",
        type=_address,
        metavar="auto|HOST:PORT|ray://HOST:PORT",
        help="a ray cluster: that of this machine, or one to send the command to (default: this machine alone)",
    )
    command.add_argument("--device", type=_cpu, metavar="cpu", help="leave GPUs alone (default: use them)")


def _commands_that_read_runs(commands) -> None:
    status = _command(commands, status_command, "status", "say what a run has done, does, lacks, and for how long")
    status.add_argument("run", type=_place, help="run folder, from any machine that sees it")

    logs = _command(commands, logs_command, "logs", "print what happened in a trial, attempt by attempt")
    logs.add_argument("run", type=_place, help="run folder")
    logs.add_argument("trial", help="the trial's id, or a part of it that no other has")

    stop = _command(commands, stop_command, "stop", "ask the driver of a run, wherever it is, to end it cleanly")
    stop.add_argument("run", type=_place, help="run folder")

    report = _command(commands, report_command, "report", "write the leaderboard of run folders again")
    report.add_argument(
        "runs", type=_place, nargs="+", metavar="RUN", help="run folder; several become one leaderboard"
    )
    report.add_argument("--out", type=_place, help="folder to write to (default: RUN, or RUN/only/… with --only)")
    report.add_argument(
        "--only", action="append", default=[], metavar="KEY=A,B", help="such as dataset=cub200 or level=input"
    )
    report.add_argument("--format", metavar="A,B", help="such as latex, csv, parquet, figures (default: the usual)")
    report.add_argument("--metrics", metavar="A,B", help="metrics that tables print (default: R@1,MAP@R)")
    report.add_argument("--data", type=Path, help="folder of the dataset, to show images of those not embedded")
    report.add_argument("--cache", type=Path, help="folder for decoded images (default: ~/.cache/metrix-bench)")

    power = _command(
        commands, power_command, "power", "say what the seeds of run folders can show, and how many would"
    )
    power.add_argument("runs", type=_place, nargs="+", metavar="RUN", help="run folder")

    trace = _command(commands, trace_command, "trace", "name the records behind the numbers of an arm")
    trace.add_argument("run", type=_place, help="run folder")
    trace.add_argument("arm", help="such as contrastive+input")

    audit = _command(commands, audit_command, "audit", "say what the fairness rules find in a run folder")
    audit.add_argument("run", type=_place, nargs="?", help="run folder")
    audit.add_argument("--rules", action="store_true", help="list the rules with their reasons")

    verify = _command(commands, verify_command, "verify", "compute the scores of records again from what was kept")
    verify.add_argument("run", type=_place, help="run folder")
    verify.add_argument("--only", default="", metavar="TEXT", help="only records with this in their id")
    verify.add_argument("--data", type=Path, help="folder of the dataset, where weights were kept")
    verify.add_argument("--cache", type=Path, help="folder for decoded images (default: ~/.cache/metrix-bench)")
    verify.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU where there is one)")

    draw = _command(
        commands, draw_command, "draw", "draw the learning curves of a finished trial, and its positivity"
    )
    draw.add_argument("run", type=_place, help="run folder")
    draw.add_argument("trial", help="the trial's id, or a part of it that no other has")
    draw.add_argument("--to", type=Path, help="a .pdf, .svg or .png file (default: RUN/figures/TRIAL.pdf)")


def _commands_about_data(commands) -> None:
    doctor = _command(
        commands, doctor_command, "doctor", "say whether a copy of a dataset is right, and what it lacks"
    )
    _dataset_options(doctor)
    doctor.add_argument(
        "--thorough", action="store_true", help="find equal images by their pixels, not only equal files"
    )

    prepare = _command(commands, prepare_command, "prepare", "decode the images of a dataset, once for all trials")
    _dataset_options(prepare)
    prepare.add_argument(
        "--side", type=_whole(1), default=Images().stored_px, metavar="PX", help="shorter side (default: %(default)s)"
    )

    listing = _command(commands, list_command, "list", "list what a grid may name")
    listing.add_argument("what", choices=sorted(LISTINGS), help="what to list")
    listing.add_argument("pattern", nargs="?", help="only names such as 'resnet*'; of stages: the backbone")


def _command(commands, function: Callable, name: str, words: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, allow_abbrev=False, help=words, description=(words[0].upper() + words[1:] + ".")
    )
    command.register("action", None, _Once)
    command.set_defaults(command=function, parser=command)
    command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return command


def _grid_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("grid", help=f"a YAML file, or one of {', '.join(shipped())}")
    command.add_argument("--data", type=Path, help="folder of the dataset, for those that are not embedded")
    command.add_argument("--cache", type=Path, help="folder for decoded images (default: ~/.cache/metrix-bench)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, such as epochs=20"
    )
    for field in LISTS:
        command.add_argument(f"--{field}", metavar="A,B", help=f"only these of the grid's {field}")


def _dataset_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("dataset", help="one of those that `list datasets` names")
    command.add_argument("--data", type=Path, help="folder of the dataset, for those that are not embedded")
    command.add_argument("--cache", type=Path, help="folder for decoded images (default: ~/.cache/metrix-bench)")
    command.add_argument(
        "--option", action="append", default=[], type=_option, metavar="KEY=VALUE", help="such as resolution=high"
    )


def _place(text: str) -> str | Path:
    """A run folder, or the URL of a bucket as it was written: a Path would make one slash of two."""
    try:
        return storage.named(text)
    except RunError as error:  # whose words hide credentials; argparse repeats the text on any other error
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """What reads a whole number from `least`, to `most`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            upper = "" if most is None else f" to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}{upper}")
        return int(text)

    return read


def _address(text: str) -> str:
    if not re.fullmatch(r"auto|ray://.+|[^/]+:\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; it is auto, HOST:PORT or ray://HOST:PORT")
    return text


def _cpu(text: str) -> str:
    if text != "cpu":
        raise argparse.ArgumentTypeError(
            f"{text!r}: a grid runs on every GPU there is, and --device cpu leaves them alone; metrix-bench trial "
            "runs one arm on one device"
        )
    return text


def _names(text: str | None) -> list[str]:
    """Names between commas; a comma inside brackets belongs to an arm. UserError where one is empty."""
    names = [] if text is None else [name.strip() for name in re.split(r",(?![^\[]*\])", text)]
    if not all(names):
        raise UserError(f"{text!r}: a name is missing beside a comma")
    return names


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a dataset. UserError for one given twice, and for a folder that the dataset would not read."""
    from harness.data import datasets

    keys = [key for key, _ in arguments.option]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--option {twice} is given twice; give it once")
    if arguments.data is not None and not datasets.describe(arguments.dataset).needs_data:
        raise UserError(f"--data {arguments.data}: {arguments.dataset} is embedded and reads no folder; leave it out")
    return dict(arguments.option)


def _option(text: str) -> tuple[str, Any]:
    """An option of a dataset; numbers, true and false are read as such."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not written KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _grid(arguments: argparse.Namespace) -> Grid:
    from harness.launch.plan import unfair

    only = {field: names for field in LISTS if (names := _names(getattr(arguments, field)))}
    if problems := overrides.conflicts(arguments.set, Grid):
        raise GridError(arguments.grid, problems)
    return Grid.load(arguments.grid, arguments.set, only, check=unfair)


def _folder(arguments: argparse.Namespace, grid: Grid) -> str | Path:
    return arguments.out or Path("results/runs") / grid.name


def run_command(arguments: argparse.Namespace) -> int:
    """Run a grid under Ray Tune, show it, and write the leaderboard of whatever there is at the end."""
    from harness.launch import supervised

    if (elsewhere := _elsewhere(arguments)) is not None:
        return elsewhere
    return supervised(lambda: _run(arguments), arguments.words, arguments.address)


def _run(arguments: argparse.Namespace) -> int:
    from harness.launch import run_grid
    from harness.reports import _terminal as terminal

    grid = _grid(arguments)
    folder = _folder(arguments, grid)
    outcome = run_grid(
        grid,
        folder,
        arguments.data,
        arguments.cache,
        watch=terminal.view,
        track=_names(arguments.track),
        address=arguments.address,
        device=arguments.device,
    )
    return _conclude(outcome, grid, folder, arguments)


def _elsewhere(arguments: argparse.Namespace) -> int | None:
    """Where the address is that of another machine: the exit code of the same command there."""
    from harness.launch import environment, remote

    if arguments.address is None or not arguments.address.startswith(environment.CLIENT):
        return None
    words = list(arguments.words)
    place = next((i for i, word in enumerate(words) if word.startswith("--address")), None)
    words[place : place + (1 if "=" in words[place] else 2)] = ["--address", "auto"]
    place = getattr(arguments, "run", None) or arguments.out
    if place is None or (isinstance(place, Path) and not place.is_absolute()):
        raise UserError(
            f"the run folder {place or 'results/runs/…'} would be looked up on the head of the cluster: give an "
            "absolute path there, or a bucket"
        )
    for option in ("data", "cache"):
        if (path := getattr(arguments, option)) is not None and not path.is_absolute():
            raise UserError(f"--{option} {path} is looked up on the head of the cluster: give an absolute path there")
    return remote.relay(arguments.address, words, texts(getattr(arguments, "grid", "")))


def _conclude(outcome, grid: Grid, folder: str | Path, arguments: argparse.Namespace) -> int:
    """Write and show the leaderboard, say what is left, and return the exit code."""
    _report([folder], Run(folder), data=arguments.data, cache=arguments.cache)
    done = {trial.id for trial in outcome.plan.trials} - outcome.ran
    if outcome.plan.trials and not outcome.missing and not outcome.ran:
        print(f"already done: {len(done)} trial{'s' * (len(done) != 1)} had records, and nothing was run")
    for sentence in _unchanged([r for r in outcome.records if r.id in done], outcome.plan.trials):
        print(sentence)
    if outcome.interrupted:
        left = f"{outcome.missing} trials" if outcome.plan.trials else "a search"
        print(f"interrupted with {left} to go; the same command continues where it stopped")
        return INTERRUPTED
    if outcome.missing:
        place, failed = Run(folder).place, len({f.id for f in outcome.failures} & {t.id for t in outcome.plan.trials})
        if failed:
            print(f"{failed} of {len(outcome.plan.trials)} trials failed: see {place}/failures")
            print(f"the same command tries them again, and so does metrix-bench retry {place} --failed")
        if outcome.missing > failed:
            print(f"{outcome.missing - failed} were not run; metrix-bench run does")
        return FAILED if failed else OK
    costs = [record.cost for record in outcome.records if record.id in outcome.ran]
    filled = sum(cost.wall_s if cost.attempt_s is None else cost.attempt_s for cost in costs)
    if outcome.slots and filled and grid.protocol != "tuned":  # a search leaves its records elsewhere
        share, slots = filled / (outcome.slots * outcome.wall_s), f"{round(outcome.slots, 1):g}"
        print(f"trials filled {share:.0%} of the time of {slots} slots")
    return OK


def _unchanged(records: Sequence[Record], trials: Sequence[Trial]) -> Iterator[str]:
    """What finished trials were asked to do differently, a sentence each: they do not run again."""
    asked = {trial.id: trial for trial in trials}
    for name in ("keep", "analysis"):
        told = {(getattr(r.trial, name), getattr(asked[r.id], name)) for r in records if r.id in asked}
        for before, now in sorted(told, key=str):
            if before != now:
                yield (
                    f"{name}={now} does not change finished trials, which have {name}={before}: name another folder "
                    "with --out to run them again"
                )


def retry_command(arguments: argparse.Namespace) -> int:
    """Run the trials of a run folder that failed again, and write its leaderboard."""
    from harness.launch import supervised

    if not arguments.failed and not arguments.only:
        raise UserError("retry needs --failed, or --only with a part of the ids")
    if (elsewhere := _elsewhere(arguments)) is not None:
        return elsewhere
    return supervised(lambda: _retry(arguments), arguments.words, arguments.address)


def _retry(arguments: argparse.Namespace) -> int:
    from harness.launch import run_grid
    from harness.reports import _terminal as terminal

    run = _existing(arguments.run)
    failed = {failure.id for failure in run.failures() if arguments.only in failure.id}
    if not failed:
        print(f"{run.place}: nothing has failed" + (f" with {arguments.only!r} in its id" if arguments.only else ""))
        return OK
    if not (grids := run.asked().grids):
        raise UserError(f"{run.place} remembers no grid: its trials ran one by one, as metrix-bench trial does")
    worst = OK
    for grid in grids:
        outcome = run_grid(
            grid,
            arguments.run,
            arguments.data,
            arguments.cache,
            watch=terminal.view,
            address=arguments.address,
            device=arguments.device,
            only=lambda trial: trial.id in failed,
        )
        worst = max(worst, _conclude(outcome, grid, arguments.run, arguments))
        if outcome.interrupted:
            break
    return worst


def plan_command(arguments: argparse.Namespace) -> int:
    """Print the trials of a grid, which are done, and what the others will take."""
    from harness.launch import refuse_other_settings
    from harness.launch.plan import estimate, make_plan
    from harness.reports import _terminal as terminal
    from harness.reports import _wording as wording

    grid = _grid(arguments)
    run = Run(_folder(arguments, grid), warn=_complain)
    run.require_own()
    plan = make_plan(grid, arguments.data, arguments.cache)
    records = run.records()
    done = {record.id: record for record in records}
    seconds = estimate(plan, tuple(done.values()), arguments.data, arguments.cache)
    terminal.table(
        f"{grid.name}: {len(plan.trials)} trial{'s' * (len(plan.trials) != 1)}",
        ("trial", "epochs", "state", "seconds"),
        [
            (t.id, str(t.schedule.epochs), "done" if t.id in done else "to run", f"{seconds[t.id]:.0f}")
            for t in plan.trials
        ]
        + [(f"{dataset}-{backbone}-{arm}", "", "n/a", reason) for dataset, backbone, arm, reason in plan.refused],
    )
    for note in plan.notes:
        print(note)
    todo = [seconds[trial.id] for trial in plan.trials if trial.id not in done]
    print(f"{len(todo)} to run, about {wording.seconds(sum(todo))} on one slot of a machine like this one")
    refuse_other_settings(run, records, grid, plan.trials)
    return OK


def trial_command(arguments: argparse.Namespace) -> int:
    """Run one arm of a grid here, print its scores and keep its records with those of the grid."""
    from harness.launch import comparable
    from harness.training.parallel import devices
    from harness.training.trial import Sources

    devices(arguments.ranks, arguments.device)
    grid = _grid(arguments)
    plan = _chosen(grid, arguments)
    run = Run(_folder(arguments, grid), warn=print)
    if arguments.out is None and (apart := differences(Grid.load(arguments.grid).trials(), plan.trials)):
        listed = "\n  ".join(apart)
        raise RunError(
            f"{run.place} is for grid {grid.name} as it is written:\n  {listed}\nName another folder with --out"
        )
    run.require_own()
    run.prepare()
    for note in plan.notes:
        print(note)
    sources = Sources(
        run.address,
        arguments.data,
        arguments.cache,
        arguments.device,
        grid=(("name", grid.name), ("version", grid.version)),
        identity=run.identity,
        ranks=arguments.ranks,
    )
    with run.lock():
        comparable(run, grid, plan.trials, sources)
        return max(_run_here(trial, run, sources) for trial in plan.trials)


def _chosen(grid: Grid, arguments: argparse.Namespace) -> "Plan":
    """The plan of the named arm, seed and fold. UserError where there are none, and why."""
    from harness.config import Arm
    from harness.launch.plan import make_plan

    if grid.protocol == "tuned":
        raise UserError(
            f"grid {grid.name} searches the settings of its arms, which metrix-bench run does; "
            "--set protocol=fair runs one with the settings as they are written"
        )
    if arguments.fold is not None and arguments.fold not in range(1, (grid.folds or 0) + 1):
        have = f"has folds 1 to {grid.folds}" if grid.folds else "has no folds; --set folds=4 gives it some"
        raise UserError(f"--fold {arguments.fold}: grid {grid.name} {have}")
    label = Arm.parse(arguments.arm).label
    grid = _each(grid, seeds=(arguments.seed,))
    if not any(_is_arm(trial, label, arguments.arm) for trial in grid.trials()):
        grid = _each(grid, arms=(arguments.arm,), levels=(), floors=())
    plan = make_plan(grid, arguments.data, arguments.cache)
    reasons = [reason for *_, arm, reason in plan.refused if arm == label or arm.partition("[")[0] == arguments.arm]
    trials = [
        trial
        for trial in plan.trials
        if _is_arm(trial, label, arguments.arm) and arguments.fold in (None, trial.fold)
    ]
    if not trials:
        raise UserError(
            f"--arm {arguments.arm}: " + (reasons[0] if reasons else f"grid {grid.name} runs no such arm")
        )
    return replace(plan, trials=tuple(trials))


def _each(grid: Grid, **changes: Any) -> Grid:
    """The grid with other settings, in its parts too."""
    parts = tuple(_each(part, **changes) for part in grid.parts)
    return grid.model_copy(update={**changes, "parts": parts})


def _is_arm(trial: Trial, label: str, short: str) -> bool:
    return trial.arm.label == label or _short(trial) == short


def _run_here(trial: Trial, run: Run, sources: "Sources") -> int:
    """Run one trial in this process, unless it is done; its exit code."""
    from harness.leaderboard.tables import FIRST_METRICS, SHOWN
    from harness.training.trial import kind_of, steps

    print(trial.id)
    before = run.record(trial)
    try:
        for progress in steps(trial, sources):
            for epoch in progress.curve[-2:] if progress.epoch == 1 else progress.curve[-1:]:
                shown = {name: score for name, score in epoch.validation.items() if name in FIRST_METRICS[:SHOWN]}
                scores = f"  validation: {_scores(shown)}" if shown else ""
                loss = "before training" if epoch.loss is None else f"loss {epoch.loss:.4f}"
                print(f"epoch {epoch.epoch}/{trial.schedule.epochs}  {loss}{scores}", flush=True)
    except Exception as error:
        if isinstance(error, UserError | OSError) or (kind := kind_of(error)) == "error":
            raise
        run.fail(trial, kind, str(error), traceback.format_exc())
        print(f"metrix-bench: {trial.id} failed, {kind}: {error}", file=sys.stderr)
        return FAILED
    record = run.record(trial)
    if before is not None:
        print(f"already done: its record is from {record.finished}, and nothing was run")
        for sentence in _unchanged([record], [trial]):
            print(sentence)
    chosen = "" if record.selected_epoch is None else f", epoch {record.selected_epoch}"
    print(f"test{chosen}: {_scores(record.test)}")
    print(f"record: {run.where(run.record_path(trial))}")
    return OK


def _scores(scores: dict[str, float]) -> str:
    """Scores in percent, as tables print them."""
    return "  ".join(f"{name} {100 * score:.1f}" for name, score in scores.items())


def _short(trial) -> str:
    """The arm as it is spoken of, without brackets."""
    return trial.arm.loss + (f"+{trial.arm.at}" if trial.arm.metrix else "")


def status_command(arguments: argparse.Namespace) -> int:
    """Print what a run has done, what runs where, what failed and why, how long it will take and what it took."""
    from harness.reports import _terminal as terminal
    from harness.runs.status import status

    found = status(_existing(arguments.run))
    terminal.table(found.title, ("trial", "state", "epoch", "score", "seconds"), found.rows)
    for sentence in found.sentences:
        print(sentence)
    return FAILED if found.failed else OK


def logs_command(arguments: argparse.Namespace) -> int:
    """Print the log of a trial."""
    run = _existing(arguments.run)
    search = run.sub("search")  # of a tuned grid
    home = {**dict.fromkeys(search.logged(), search), **dict.fromkeys(run.logged(), run)}
    name = _only_one(arguments.trial, sorted(home), run, "no log; metrix-bench run writes one of every trial")
    print(home[name].log(name), end="")
    return OK


def _only_one(part: str, names: Sequence[str], run: Run, nothing: str) -> str:
    """The one name that has `part` in it, or is `part`; UserError with those to choose from otherwise.

    `nothing`: what to say where there are no names.
    """
    found = [name for name in names if name == part] or [name for name in names if part in name]
    if not names:
        raise UserError(f"{run.place} holds {nothing}")
    if len(found) != 1:
        listed = "\n  ".join(found or names)
        count = f"{len(found)} trials" if found else "no trial"
        raise UserError(f"{part!r} names {count} of {run.place}; name one of\n  {listed}")
    return found[0]


def stop_command(arguments: argparse.Namespace) -> int:
    """Ask a run to stop; its driver sees it within seconds."""
    from harness.runs.status import drives

    run = _existing(arguments.run)
    if (driver := drives(run)) is None:
        print(f"{run.place}: nothing runs here")
        return OK
    run.ask_to_stop()
    print(f"{run.place}: {driver} was asked to stop; it keeps what the running trials have done so far")
    return OK


def report_command(arguments: argparse.Namespace) -> int:
    """Write the leaderboard files from the records of one run or several, and show it."""
    from harness.leaderboard.collection import parse

    only = parse(arguments.only)
    if len(arguments.runs) > 1 and arguments.out is None:
        raise UserError("a report of several runs needs a folder to write to: --out FOLDER")
    filters = "-".join(f"{key}={','.join(values)}" for key, values in only.items())
    target = Run(arguments.out or arguments.runs[0])
    if filters and arguments.out is None:
        target = target.sub(f"only/{filters.replace('/', '_')}")
    formats, metrics = _names(arguments.format), _names(arguments.metrics)
    for folder in arguments.runs:
        _existing(folder)
    target.require_own(("leaderboard.", "figures"))
    _report(arguments.runs, target, only, formats, metrics, arguments.data, arguments.cache)
    return OK


def power_command(arguments: argparse.Namespace) -> int:
    """Print, for every column, the least difference its seeds can show and the seeds that smaller ones need."""
    from harness.leaderboard import comparisons
    from harness.leaderboard.collection import collect
    from harness.reports import _terminal as terminal
    from harness.reports import _wording as wording

    def points(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.2f}"

    rows = []
    for block in collect(arguments.runs, warn=_complain).leaderboard().blocks:
        for column in map(block.column, block.shown):
            plan = ["–" if seeds is None else seeds for seeds in comparisons.plan(column)]
            known = (column.seeds, column.comparisons, points(column.spread), points(column.least))
            rows.append((wording.heading(block), column.metric, *known, *plan))
    targets = [f"for {100 * target:.1f}" for target in comparisons.TARGETS]
    columns = ("table", "metric", "paired seeds", "comparisons", "spread", "least", *targets)
    terminal.table("what seeds can show, in points; the last columns: seeds needed", columns, rows)
    print("spread: standard deviation of the differences to the own baseline, pooled; it needs 3 paired seeds")
    print("least: the true difference found with a chance of 80 % at 5 % after Holm; seeds needed are for the same")
    return OK


def trace_command(arguments: argparse.Namespace) -> int:
    """Print the scores of every record of an arm and the file that holds it."""
    from harness.leaderboard.collection import collect, trace
    from harness.reports import _terminal as terminal

    found = trace(collect([arguments.run], warn=_complain), arguments.arm)
    metrics = list(dict.fromkeys(metric for *_, scores, _ in found for metric in scores))
    rows = [
        (dataset, backbone, seed, *(f"{100 * scores[m]:.4f}" if m in scores else "" for m in metrics), str(path))
        for dataset, backbone, _, seed, scores, path in found
    ]
    terminal.table(arguments.arm, ("dataset", "backbone", "seed", *metrics, "record"), rows)
    return OK


def _existing(place: str | Path) -> Run:
    run = Run(place, warn=_complain)
    if not run.exists():
        raise RunError(f"{run.place} is not a run folder: it has no records/")
    return run


def _complain(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _report(
    runs: Sequence[str | Path],
    target: Run,
    only: dict[str, list[str]] | None = None,
    formats: Sequence[str] = (),
    metrics: Sequence[str] = (),
    data: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Write the leaderboard of runs into a folder or bucket, and show it."""
    from harness import reports
    from harness.leaderboard import collection
    from harness.reports import _gallery as gallery
    from harness.reports import _terminal as terminal

    found = collection.collect(runs, only, warn=_complain)
    if not found.records and not found.failures:
        print(f"{' and '.join(map(str, runs))} holds no results yet")
        return
    board = collection.narrowed(found.leaderboard(metrics), only or {})
    target.require_writable()
    board = gallery.with_gallery(board, found, data, cache)
    written = reports.write_all(board, target.folder, formats)
    for path in (*target.folder.glob("leaderboard.*"), *written):
        target.push(path)
    terminal.show(board)
    print("written: " + "  ".join(target.where(path) for path in written))
    for path in written:
        if path.suffix == reports.find("latex").SUFFIX and reports.find("latex").cites(board):
            print(reports.find("latex").CITED)
        if path.suffix == reports.find("web").SUFFIX:
            print(f"open {target.where(path)} in a browser")


def audit_command(arguments: argparse.Namespace) -> int:
    """Print what the fairness rules find, by rule, or with --rules the rules; 1 where one says that a row may not
    stand."""
    from harness.fairness import rules
    from harness.reports import _terminal as terminal

    if arguments.rules:
        columns = ("rule", "", "demand", "reason")
        terminal.table("fairness rules", columns, [(r.id, r.severity, r.title, r.reason) for r in rules.found()])
        return OK
    if arguments.run is None:
        raise UserError("audit needs a run folder, or --rules")
    from harness.audit import audit

    run = _existing(arguments.run)
    found = audit(run)
    for rule in rules.found():
        if of_rule := [finding for finding in found if finding.rule == rule.id]:
            print(f"\n{rule.id}  {rule.title}.")
            for finding in of_rule:
                print(f"  {finding.severity}  {finding.sentence}")
    errors = sum(finding.severity == "E" for finding in found)
    said = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((errors, "error"), (len(found) - errors, "warning")))
    print(f"\n{run.place}: {', '.join(said)} of {len(rules.found())} rules")
    return FAILED if errors else OK


def verify_command(arguments: argparse.Namespace) -> int:
    """Print for every record whether what was kept gives its scores; 1 where one does not or a file is missing."""
    from harness.training.parallel import devices
    from harness.verify import verify

    devices(1, arguments.device)
    run = _existing(arguments.run)
    verdicts = []
    for verdict in verify(run, arguments.only, arguments.data, arguments.cache, arguments.device):
        print(f"{verdict.state:8} {verdict.id}: {verdict}", flush=True)
        verdicts.append(verdict)
    if not verdicts:
        named = f" with {arguments.only!r} in its id" if arguments.only else ""
        raise UserError(f"{run.place} has no record of a test{named}")
    good = sum(verdict.state == "matches" for verdict in verdicts)
    print(f"{good} of {len(verdicts)} match")
    return OK if good == len(verdicts) else FAILED


def doctor_command(arguments: argparse.Namespace) -> int:
    """Print what a copy of a dataset holds, what it should, and all that is wrong with it."""
    from harness.data import doctor
    from harness.reports import _terminal as terminal

    options = _options(arguments)
    with terminal.progress(f"looking at {arguments.dataset}") as progress:
        found = doctor.examine(
            arguments.dataset,
            arguments.data,
            arguments.cache,
            thorough=arguments.thorough,
            progress=progress,
            **options,
        )
    if found.counts:
        columns = ("part", "images", "classes", *(("images expected", "classes expected") if found.expected else ()))
        parts = dict.fromkeys((*found.counts, *found.expected))
        rows = [(part, *found.counts.get(part, (0, 0)), *found.expected.get(part, ())) for part in parts]
        terminal.table(f"{found.name}: {found.title}", columns, rows)
        print(f"fingerprint {found.fingerprint}")
    for finding in found.findings:
        print(f"{finding.severity}  {finding.sentence}")
    for problem in found.unreadable:
        print(f"   {problem}")
    if found.sound:
        whole = found.expected and not found.findings
        print(
            f"{found.name}: " + (f"a standard copy of {found.title}" if whole else "nothing keeps it from being run")
        )
        return OK
    print(found.advice, end="\n" if found.advice else "")
    return FAILED


def prepare_command(arguments: argparse.Namespace) -> int:
    """Decode a dataset into the cache, so that no trial has to wait for it."""
    from harness.data import datasets
    from harness.data.cache import default_folder
    from harness.data.images import open_images
    from harness.reports import _terminal as terminal

    dataset = datasets.load(arguments.dataset, arguments.data, arguments.cache, **_options(arguments))
    cache = arguments.cache or default_folder()
    with terminal.progress(f"decoding {dataset.name}") as progress:
        images = open_images(dataset, arguments.side, cache, progress, announce=print)
    print(f"{len(images)} images in {images.path}, {images.path.stat().st_size / 1e9:.2f} GB")
    return OK


def draw_command(arguments: argparse.Namespace) -> int:
    """Draw one trial and print where."""
    from harness.reports._figures import draw_trial

    run = _existing(arguments.run)
    records = {record.id: record for record in run.records()}
    record = records[_only_one(arguments.trial, list(records), run, "no record yet")]
    drawn = draw_trial(record, arguments.to or run.folder / "figures" / f"{record.id}.pdf")
    if arguments.to is None:
        run.push(drawn)
    print(drawn if arguments.to else run.where(drawn))
    return OK


def list_command(arguments: argparse.Namespace) -> int:
    """Print a register."""
    from harness.reports import _terminal as terminal

    title, columns, rows = LISTINGS[arguments.what](arguments.pattern)
    if arguments.what != "stages" and (pattern := arguments.pattern) is not None:
        names = [row[0] for row in rows]
        rows = [row for row in rows if fnmatchcase(row[0], pattern)]
        if not rows:
            raise UserError(registry.unknown(arguments.what, pattern, names))
    terminal.table(title, columns, rows)
    return OK


def _losses(pattern: str | None):
    import baselines

    rows = []
    for name in baselines.names():
        about = baselines.describe(name)
        form = "yes" if about.metrix else f"no: {about.why_no_metrix}"
        rows.append((name, about.paper, form, ", ".join(about.learnable) or "–"))
    return "losses", ("name", "paper", "Metrix form", "learnable"), rows


def _datasets(pattern: str | None):
    from harness.data import datasets

    rows = [
        (d.name, d.title, "--data" if d.needs_data else "embedded") for d in map(datasets.describe, datasets.names())
    ]
    return "datasets", ("name", "what", "data"), rows


def _backbones(pattern: str | None):
    from harness.training import models

    return "backbones", ("name",), [(name,) for name in models.names()]


def _stages(pattern: str | None):
    from harness.training import models

    if pattern is None:
        raise UserError("list stages needs a backbone: metrix-bench list stages resnet50")
    return f"stages of {pattern}", ("stage",), [(stage,) for stage in models.stages(pattern)]


def _grids(pattern: str | None):
    rows = [(name, Grid.load(name).about.strip()) for name in shipped()]
    return "grids", ("name", "what"), rows


LISTINGS = {"losses": _losses, "datasets": _datasets, "backbones": _backbones, "stages": _stages, "grids": _grids}

if __name__ == "__main__":
    sys.exit(main())
