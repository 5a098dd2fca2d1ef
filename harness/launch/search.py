"""Tuning with equal budgets: Optuna proposes, trials run like all others, and their records keep the scores.

A study is rebuilt from its records: the sampler is seeded and proposes in rounds of a fixed size. So equal scores
lead to equal proposals, and an interrupted search continues where it stopped. Search trials never read the test.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness import registry
from harness.config import Search, Trial
from harness.fairness.protocols import SEARCH
from harness.runs.errors import RunError
from harness.runs.record import Record, write_json
from harness.runs.run import Run
from harness.streams import stream

Space = dict[str, dict[str, Any]]


def tune(trials: Sequence[Trial], settings: Search, run: Run, execute: Callable[[list[Trial]], bool]) -> list[Trial]:
    """Search the settings of every arm among `trials`; return the trials with the chosen settings.

    `run` is the folder of the search's own records. `execute` runs trials until each has a record there or has
    failed; if it returns False, the search was interrupted, and [] is returned. Every arm gets the same number of
    proposals, including failed ones (FAIR-06). A proposal runs on every fold and fails if it fails on one. Raises
    RunError if the folder holds a search over another space (FAIR-09).
    """
    floors = [trial for trial in trials if trial.arm.at == "floor"]
    arms = {trial.cell: trial for trial in reversed(trials) if trial.arm.at != "floor"}
    studies = {cell: Study(trial, settings) for cell, trial in arms.items()}
    declare(run, studies)
    for _ in range(math.ceil(settings.trials / settings.round_of)):
        proposed = {cell: study.propose() for cell, study in studies.items()}
        if not execute([trial for batch in proposed.values() for proposal in batch for trial in proposal]):
            return []
        for cell, batch in proposed.items():
            studies[cell].learn([_score([run.record(trial) for trial in proposal]) for proposal in batch])
    chosen = {cell: study.chosen() for cell, study in studies.items()}
    declare(run, studies, chosen)
    return floors + [_with(trial, chosen[trial.cell]) for trial in trials if trial.arm.at != "floor"]


def space(trial: Trial, settings: Search) -> Space:
    """Return the search space of an arm: {"lr": {"low", "high", "log"}, "loss.mining": {"choices"}, …}.

    The arm's own choice is always among the choices, since the first trial of every search has the arm's settings.
    """
    names: Space = {"lr": _range([trial.training.lr * factor for factor in settings.lr_range], log=True)}
    names |= _own("loss", registry.loss(trial.arm.loss).search_space, trial.arm.options)
    if trial.arm.metrix is not None:
        names["metrix.weight"] = _range(settings.weight_range, log=True)
        names["metrix.alpha"] = _range(settings.alpha_range, log=True)
    if rival := trial.arm.rival:
        names |= _own("rival", registry.level(rival.at).search_space, rival.options)
    return names


def _own(owner: str, declared: Space, options: Mapping[str, Any]) -> Space:
    """Return the declared space of a loss or a rival, with the arm's own choices among its choices."""
    names: Space = {}
    for name, values in declared.items():
        names[f"{owner}.{name}"] = dict(values)
        if "choices" in values:
            names[f"{owner}.{name}"]["choices"] = list(dict.fromkeys([*values["choices"], options[name]]))
    return names


def declare(run: Run, studies: "dict[tuple, Study]", chosen: dict[tuple, dict] | None = None) -> None:
    """Write the spaces, and at the end the chosen settings, to study.json.

    Raises RunError if a space was declared differently before.
    """
    path, before, content = run.folder / "study.json", run.declared(), {}
    for cell, study in studies.items():
        name, declared = "/".join(cell), study.declared
        old = before.get(name, {})
        if old and {key: old.get(key) for key in declared} != declared:
            raise RunError(
                f"FAIR-09 {path} declares another search for {name}; a search may not change while it runs: name "
                "another folder with --out (OUT=… of make), or go back to the old settings"
            )
        content[name] = {**old, **declared, **({"chosen": chosen[cell], "best": study.best} if chosen else {})}
    write_json(path, {**before, **content})
    run.push(path)


class Study:
    """The search of one arm."""

    def __init__(self, trial: Trial, settings: Search):
        try:
            import optuna
        except ModuleNotFoundError:
            raise RunError("a search needs optuna, which is not installed: pip install '.[tune]'") from None

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.trial, self.settings, self.space = trial.whole, settings, space(trial, settings)
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.CategoricalDistribution(values["choices"])
            if "choices" in values
            else optuna.distributions.FloatDistribution(values["low"], values["high"], log=values.get("log", False))
            for name, values in self.space.items()
        }
        seed = stream(settings.search_seed, *trial.cell, "search") % 2**32
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=settings.round_of, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._study.enqueue_trial(_defaults(trial, self.space))
        self._proposed: list = []

    @property
    def declared(self) -> dict[str, Any]:
        """What may not change while the search runs: space, budget, seed and folds."""
        budget = {"trials": self.settings.trials, "seed": self.settings.search_seed, "folds": self.trial.folds}
        return {"space": self.space, **budget}

    def propose(self) -> list[list[Trial]]:
        """Return the proposals of the next round, each with a trial for every fold; the first has the defaults."""
        left = self.settings.trials - sum(t.state.is_finished() for t in self._study.trials)
        self._proposed = [self._study.ask(self._distributions) for _ in range(min(self.settings.round_of, left))]
        update = {"protocol": SEARCH.name, "seed": self.settings.search_seed, "keep": "none"}
        return [
            _with(self.trial, proposed.params).model_copy(update=update).each_fold() for proposed in self._proposed
        ]

    def learn(self, scores: Sequence[float | None]) -> None:
        """Take the validation scores of the round; None for a proposal that failed."""
        from optuna.trial import TrialState

        for proposed, score in zip(self._proposed, scores, strict=True):
            if score is None:
                self._study.tell(proposed, state=TrialState.FAIL)
            else:
                self._study.tell(proposed, score)

    @property
    def best(self) -> float | None:
        """The highest validation score; None if every trial failed."""
        values = [t.value for t in self._study.trials if t.value is not None]
        return max(values, default=None)

    def chosen(self) -> dict[str, Any]:
        """Return the settings with the highest validation score, the earliest on ties; the defaults if all failed."""
        return dict(self._study.best_params) if self.best is not None else _defaults(self.trial, self.space)


def _score(folds: Sequence[Record | None]) -> float | None:
    """Return the validation score of a proposal, the mean over its folds; None if one of them has no record."""
    finished = [record for record in folds if record is not None]
    if len(finished) < len(folds):
        return None
    return statistics.fmean(record.validation[SEARCH.metric] for record in finished)


def _range(bounds: Sequence[float], log: bool) -> dict[str, Any]:
    low, high = (float(f"{bound:.12g}") for bound in bounds)
    return {"low": low, "high": high, "log": log}


def _defaults(trial: Trial, space: Space) -> dict[str, Any]:
    """Return the arm's own values of the searched settings; a number may be outside its range."""
    values = {"lr": trial.training.lr, **{f"loss.{k}": v for k, v in trial.arm.options.items()}}
    if trial.arm.metrix is not None:
        values |= {"metrix.weight": trial.arm.metrix.weight, "metrix.alpha": trial.arm.metrix.alpha}
    if rival := trial.arm.rival:
        values |= {f"rival.{name}": value for name, value in rival.options.items()}
    return {name: values[name] for name in space}


def _with(trial: Trial, params: dict[str, Any]) -> Trial:
    """Return the trial with these settings in place of its own."""
    arm, owned = trial.arm, defaultdict(dict)
    for name, value in params.items():
        owner, _, key = name.partition(".")
        owned[owner][key] = value
    metrix = arm.metrix.model_copy(update=owned["metrix"]) if arm.metrix else None
    rival = arm.rival.model_copy(update={"options": arm.rival.options | owned["rival"]}) if arm.rival else None
    options = arm.options | owned["loss"]
    arm = arm.model_copy(update={"options": options, "metrix": metrix, "rival": rival, "tuned": arm.label})
    training = trial.training.model_copy(update={"lr": params.get("lr", trial.training.lr)})
    return trial.model_copy(update={"arm": arm, "training": training})
