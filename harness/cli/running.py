"""Commands that run trials: run, plan, trial, retry."""

import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.options import (
    CACHE,
    DATA,
    DEVICE,
    FAILED,
    INTERRUPTED,
    OK,
    RUN,
    add_cluster,
    add_command,
    add_grid,
    names,
    place,
    warn,
    whole,
)
from harness.cli.reading import existing, write_leaderboard
from harness.errors import GridError, UserError

if TYPE_CHECKING:
    from harness.config import Trial
    from harness.grid import Grid
    from harness.launch import Outcome
    from harness.launch.plan import Plan
    from harness.runs.record import Record
    from harness.runs.run import Run
    from harness.training.pictures import Sources


def add_commands(commands) -> None:
    """Add the commands of this file."""
    command = add_command(commands, run, "run", "run the missing trials of a grid, then write its leaderboard")
    add_grid(command)
    command.add_argument("--out", type=place, metavar="FOLDER", help=RUN)
    command.add_argument(
        "--track",
        type=names,
        default=(),
        metavar="A,B",
        help="log learning curves to tensorboard, wandb or mlflow (default: none)",
    )
    add_cluster(command)

    command = add_command(commands, plan, "plan", "show what a grid would run and what it would cost")
    add_grid(command)
    command.add_argument(
        "--out",
        type=place,
        metavar="FOLDER",
        help="run folder whose records count as done (default: results/runs/GRID)",
    )

    command = add_command(commands, trial, "trial", "run one arm of a grid in this process, without ray")
    add_grid(command)
    command.add_argument("--arm", required=True, help="arm, such as contrastive or multi_similarity+embedding")
    command.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="training seed (default: %(default)s)")
    command.add_argument("--fold", type=whole(1), help="run only this fold, counted from 1 (default: all folds)")
    command.add_argument("--device", help=DEVICE)
    command.add_argument(
        "--ranks",
        type=whole(1),
        default=1,
        help="number of GPUs, or of processes without GPUs, that share each batch (default: %(default)s)",
    )
    command.add_argument("--out", type=place, metavar="FOLDER", help=RUN)

    command = add_command(commands, retry, "retry", "retry the failed trials of a run folder")
    command.add_argument("run", type=place, help="run folder")
    command.add_argument("--failed", action="store_true", help="retry all failed trials")
    command.add_argument("--only", default="", metavar="TEXT", help="retry only failed trials whose id contains TEXT")
    command.add_argument("--data", type=Path, metavar="FOLDER", help=DATA)
    command.add_argument("--cache", type=Path, metavar="FOLDER", help=CACHE)
    add_cluster(command)


def load_grid(grid: str, overrides: Sequence[str], only: dict[str, list[str]], weights: Path | None = None) -> "Grid":
    """Return the grid that a command line describes. Raise GridError with all of its problems.

    `weights` is the file for its pretrained network, in place of what the grid names.
    """
    from harness.grid import Grid
    from harness.grids.overrides import conflicts
    from harness.launch.plan import unfair

    if problems := conflicts(overrides, Grid):
        raise GridError(grid, problems)
    loaded = Grid.load(grid, overrides, only, check=unfair)
    return loaded if weights is None else _weighted(loaded, weights)


def _weighted(grid: "Grid", weights: Path) -> "Grid":
    """Return the grid with a file of weights for its only pretrained network. Raise GridError if there is none."""
    parts = tuple(_weighted(part, weights) for part in grid.parts)
    pretrained = [backbone.name for backbone in grid.backbones if backbone.pretrained]
    if len(pretrained) != 1:
        problem = f"has {len(pretrained)} pretrained networks, {', '.join(pretrained)}; choose one with --backbones"
        problem = problem if pretrained else "has no pretrained network (pretrained: true in backbones)"
        raise GridError(grid.name, [f"--weights {weights}: the grid {problem}"])
    changed = {"pretrained": str(weights)}
    backbones = tuple(b.model_copy(update=changed) if b.pretrained else b for b in grid.backbones)
    return grid.model_copy(update={"backbones": backbones, "parts": parts})


def _folder(out: str | Path | None, grid: "Grid") -> str | Path:
    return out or Path("results/runs") / grid.name


def run(
    words: Sequence[str],
    grid: str,
    overrides: Sequence[str],
    only: dict[str, list[str]],
    data: Path | None,
    cache: Path | None,
    weights: Path | None,
    out: str | Path | None,
    track: Sequence[str],
    address: str | None,
    device: str | None,
) -> int:
    """Run a grid under Ray Tune, show its progress, and write the leaderboard at the end."""
    from harness.grids import texts
    from harness.launch import remote, supervised

    def here() -> int:
        from harness.launch import run_grid
        from harness.reports import terminal

        loaded = load_grid(grid, overrides, only, weights)
        folder = _folder(out, loaded)
        outcome = run_grid(
            loaded, folder, data, cache, watch=terminal.view, track=track, address=address, device=device
        )
        return _finish(outcome, loaded, folder, data, cache)

    if remote.is_remote(address):
        return remote.relay(
            address, remote.words_there(words, out, data=data, cache=cache, weights=weights), texts(grid)
        )
    return supervised(here, words, address)


def retry(
    words: Sequence[str],
    run: str | Path,
    failed: bool,
    only: str,
    data: Path | None,
    cache: Path | None,
    address: str | None,
    device: str | None,
) -> int:
    """Retry the failed trials of a run folder, and write its leaderboard."""
    from harness.launch import remote, supervised

    if not failed and not only:
        raise UserError("retry needs --failed, or --only with part of an id")
    if remote.is_remote(address):
        return remote.relay(address, remote.words_there(words, run, data=data, cache=cache), {})
    return supervised(lambda: _retry(run, only, data, cache, address, device), words, address)


def _retry(
    place: str | Path, only: str, data: Path | None, cache: Path | None, address: str | None, device: str | None
) -> int:
    from harness.launch import run_grid
    from harness.reports import terminal

    run = existing(place)
    failed = {failure.id for failure in run.failures() if only in failure.id}
    if not failed:
        print(f"{run.place}: no failed trials" + (f" with {only!r} in their id" if only else ""))
        return OK
    if not (grids := run.requested().grids):
        raise UserError(
            f"{run.place} has no grid: its trials were run by metrix-bench trial, which can run them again"
        )
    worst = OK
    for grid in grids:
        outcome = run_grid(
            grid,
            place,
            data,
            cache,
            watch=terminal.view,
            address=address,
            device=device,
            only=lambda trial: trial.id in failed,
        )
        worst = max(worst, _finish(outcome, grid, place, data, cache))
        if outcome.interrupted:
            break
    return worst


def _finish(outcome: "Outcome", grid: "Grid", folder: str | Path, data: Path | None, cache: Path | None) -> int:
    """Write and show the leaderboard, print what remains to be done, and return the exit code."""
    from harness.runs.run import Run

    write_leaderboard([folder], Run(folder), data=data, cache=cache)
    trials = outcome.plan.trials
    done = {trial.id for trial in trials} - outcome.ran
    if trials and not outcome.missing and not outcome.ran:
        print(f"nothing to run: {_count(len(done), 'trial')} already done")
    for sentence in _unchanged([record for record in outcome.records if record.id in done], trials):
        print(sentence)
    if outcome.interrupted:
        where = f"with {_count(outcome.missing, 'trial')} to go" if trials else "during the search"
        print(f"interrupted {where}; run the same command again to continue")
        return INTERRUPTED
    if outcome.missing:
        place, failed = Run(folder).place, len({f.id for f in outcome.failures} & {t.id for t in trials})
        if failed:
            print(f"{failed} of {_count(len(trials), 'trial')} failed: see {place}/failures")
            print(f"to retry, run the same command again, or metrix-bench retry {place} --failed")
        if (waiting := outcome.missing - failed) > 0:
            print(f"{_count(waiting, 'trial')} {'has' if waiting == 1 else 'have'} not run yet: use metrix-bench run")
        return FAILED if failed else OK
    costs = [record.cost for record in outcome.records if record.id in outcome.ran]
    busy_s = sum(cost.wall_s if cost.attempt_s is None else cost.attempt_s for cost in costs)
    if outcome.slots and busy_s and grid.protocol != "tuned":  # the records of a search are not among these
        share, slots = busy_s / (outcome.slots * outcome.wall_s), round(outcome.slots, 1)
        print(f"slots busy {100 * share:.0f} % of the time ({slots:g} slot{'s' * (slots != 1)})")
    return OK


def _count(number: int, what: str) -> str:
    """Return a number with its noun: `1 trial`, `2 trials`."""
    return f"{number} {what}{'s' * (number != 1)}"


def _unchanged(records: Sequence["Record"], trials: Sequence["Trial"]) -> Iterator[str]:
    """Yield a sentence for each changed setting that has no effect, because finished trials do not run again."""
    wanted = {trial.id: trial for trial in trials}
    for name in ("keep", "analysis"):
        pairs = {(getattr(r.trial, name), getattr(wanted[r.id], name)) for r in records if r.id in wanted}
        for before, now in sorted(pairs, key=str):
            if before != now:
                yield (
                    f"{name}={now} does not change finished trials, which have {name}={before}: name another folder "
                    "with --out to run them again"
                )


def plan(
    grid: str,
    overrides: Sequence[str],
    only: dict[str, list[str]],
    data: Path | None,
    cache: Path | None,
    weights: Path | None,
    out: str | Path | None,
) -> int:
    """Print the trials of a grid, which of them are done, and how long the others will take."""
    from harness.launch import require_same_settings
    from harness.launch.plan import estimate, make_plan
    from harness.reports import terminal, wording
    from harness.runs.run import Run

    loaded = load_grid(grid, overrides, only, weights)
    run = Run(_folder(out, loaded), warn=warn)
    run.require_own()
    planned = make_plan(loaded, data, cache)
    records = run.records()
    done = {record.id: record for record in records}
    seconds = estimate(planned, tuple(done.values()), data, cache)
    terminal.table(
        f"{loaded.name}: {_count(len(planned.trials), 'trial')}",
        ("trial", "epochs", "state", "seconds"),
        [
            (t.id, str(t.schedule.epochs), "done" if t.id in done else "to run", f"{seconds[t.id]:.0f}")
            for t in planned.trials
        ]
        + [(f"{dataset}-{backbone}-{arm}", "", "n/a", reason) for dataset, backbone, arm, reason in planned.refused],
    )
    for note in planned.notes:
        print(note)
    to_run = [seconds[trial.id] for trial in planned.trials if trial.id not in done]
    print(f"{_count(len(to_run), 'trial')} to run, about {wording.seconds(sum(to_run))} on one slot of this machine")
    require_same_settings(run, records, loaded, planned.trials)
    return OK


def trial(
    grid: str,
    overrides: Sequence[str],
    only: dict[str, list[str]],
    data: Path | None,
    cache: Path | None,
    weights: Path | None,
    out: str | Path | None,
    arm: str,
    seed: int,
    fold: int | None,
    device: str | None,
    ranks: int,
) -> int:
    """Run one arm of a grid in this process, print its scores, and write its records to the grid's run folder."""
    from harness.fairness.comparability import differences
    from harness.launch import comparable_records
    from harness.runs.errors import RunError
    from harness.runs.run import Run
    from harness.training.devices import rank_devices
    from harness.training.pictures import Sources

    rank_devices(ranks, device)
    loaded = load_grid(grid, overrides, only, weights)
    plan = _plan_of_arm(loaded, arm, seed, fold, data, cache)
    run = Run(_folder(out, loaded), warn=print)
    if out is None and (changes := differences(load_grid(grid, (), {}, weights).trials(), plan.trials)):
        listed = "\n  ".join(changes)
        raise RunError(
            f"{run.place} is for grid {loaded.name} without changes:\n  {listed}\nName another folder with --out"
        )
    run.require_own()
    run.prepare()
    for note in plan.notes:
        print(note)
    about = (("name", loaded.name), ("version", loaded.version))
    sources = Sources(run.address, data, cache, device, grid=about, identity=run.identity, ranks=ranks)
    with run.lock():
        comparable_records(run, loaded, plan.trials, sources)
        return max(_run_here(trial, run, sources) for trial in plan.trials)


def _plan_of_arm(
    grid: "Grid", arm: str, seed: int, fold: int | None, data: Path | None, cache: Path | None
) -> "Plan":
    """Return the plan of one arm, seed and fold. Raise UserError with the reason if there is none."""
    from harness.config import Arm
    from harness.launch.plan import make_plan

    if grid.protocol == "tuned":
        raise UserError(
            f"grid {grid.name} is tuned by a search, which needs metrix-bench run; add --set protocol=fair to run an "
            "arm with the settings as they are written"
        )
    if fold is not None and fold not in range(1, (grid.folds or 0) + 1):
        have = f"has folds 1 to {grid.folds}" if grid.folds else "has no folds; add them with --set folds=4"
        raise UserError(f"--fold {fold}: grid {grid.name} {have}")
    label = Arm.parse(arm).label
    grid = _with(grid, seeds=(seed,))
    if not any(_is_arm(trial, label, arm) for trial in grid.trials()):
        grid = _with(grid, arms=(arm,), levels=(), floors=())
    plan = make_plan(grid, data, cache)
    reasons = [reason for *_, name, reason in plan.refused if name == label or name.partition("[")[0] == arm]
    trials = [trial for trial in plan.trials if _is_arm(trial, label, arm) and fold in (None, trial.fold)]
    if not trials:
        raise UserError(f"--arm {arm}: " + (reasons[0] if reasons else f"grid {grid.name} runs no such arm"))
    return replace(plan, trials=tuple(trials))


def _with(grid: "Grid", **changes: Any) -> "Grid":
    """Return the grid with these settings changed, in its parts too."""
    parts = tuple(_with(part, **changes) for part in grid.parts)
    return grid.model_copy(update={**changes, "parts": parts})


def _is_arm(trial: "Trial", label: str, written: str) -> bool:
    """Return whether a trial belongs to the arm as it was written, with or without brackets."""
    short = trial.arm.loss + (f"+{trial.arm.at}" if trial.arm.metrix else "")
    return trial.arm.label == label or short == written


def _run_here(trial: "Trial", run: "Run", sources: "Sources") -> int:
    """Run one trial in this process unless it is done, and return the exit code."""
    from harness.leaderboard.frame import SHOWN
    from harness.leaderboard.scores import FIRST_METRICS
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
    assert record is not None  # `steps` has written it
    if before is not None:
        print(f"nothing to run: its record is from {record.finished}")
        for sentence in _unchanged([record], [trial]):
            print(sentence)
    chosen = "" if record.selected_epoch is None else f", epoch {record.selected_epoch}"
    print(f"test{chosen}: {_scores(record.test)}")
    print(f"record: {run.where(run.record_path(trial))}")
    return OK


def _scores(scores: dict[str, float]) -> str:
    """Return scores in percent, as tables print them."""
    return "  ".join(f"{name} {100 * score:.1f}" for name, score in scores.items())
