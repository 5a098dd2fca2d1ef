"""Grids: turn a YAML file into the list of trials that it describes.

A `Grid` is what a researcher writes: lists of datasets, backbones, losses, levels and seeds, and the settings that
all of them share. `Grid.load` reports all mistakes in a file at once, in the words of the file.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, WrapValidator, model_validator

from harness import grids, registry
from harness.config import (
    FEATURES,
    FLOORS,
    LEVELS,
    METRIX,
    SEEDLESS,
    SHARED_BY_A_LOSS,
    Arm,
    Backbone,
    Choice,
    Images,
    Ks,
    Level,
    Mixing,
    Model,
    Resources,
    Rival,
    Search,
    Training,
    Trial,
    Value,
    named,
)
from harness.errors import GridError, UserError, unknown
from harness.grids import overrides as changes
from harness.grids.validation import section, sentences

ALLOWED_WITH_INCLUDE = ("name", "version", "about", "resources")  # the only settings of a grid that includes others
Check = Callable[[dict[str, Any]], Iterable[str]]  # the settings in a file → one sentence for each problem


class Loss(Choice):
    """A loss with its hyperparameters (`options`) and its own step sizes, if they differ from the grid's."""

    lr: float | None = Field(default=None, gt=0)
    schedule: Literal["constant", "step", "cosine"] | None = None
    step_epochs: int | None = Field(default=None, ge=1)
    gamma: float | None = Field(default=None, gt=0, le=1)


class ListedLevel(Mixing[Literal["baseline", "embedding", "feature", "input"]]):
    """A level in the list of a grid, `feature` or `{at: feature, hardest: 3}`; `metrix` sets the rest."""


def _rival(item: Any, metrix: Callable[[Any], Any]) -> Any:
    """Return the rival of a level's item, or what `metrix` makes of an item without one."""
    at = item.get("at") if isinstance(item, dict) else None
    if isinstance(item, Rival) or not isinstance(at, str) or at in LEVELS:
        return item if isinstance(item, Rival) else metrix(item)
    own = {key: value for key, value in item.items() if key != "at"}
    try:
        return Rival.of(at, own["options"] if [*own] == ["options"] else own)
    except GridError as error:
        raise ValueError("; ".join(error.problems)) from None
    except UserError as error:
        raise ValueError(str(error)) from None


AnyLevel = Annotated[SerializeAsAny[ListedLevel], WrapValidator(_rival)]  # or a `Rival`


class Grid(Value):
    """The experiment that a YAML file describes: datasets × backbones × (losses × levels + arms + floors) × seeds.

    `compute_matched` adds, for each Metrix arm with more forward passes than its baseline, the baseline trained for
    as many forward passes. `analysis` adds alignment, uniformity, utilization and positivity to the records. `folds`
    runs every cell and seed that many times, each time with other training classes for validation; the score of the
    seed is the mean (Musgrave et al. 2020, A Metric Learning Reality Check). Without it there is one fixed validation
    split. `floors` are rows without training: `untrained` (the network with its random head), `pixels`, and
    `features` (the pooled features of a pretrained network, without a head), which is in every table of such a
    network unless `floors` is empty. `ks` are the K of R@K, such as [1, 10]; the default is what is usual for the
    dataset.
    A file with `include: [grid, …]` runs several grids as one, its `parts`: names that ship, or paths from the folder
    of the including file. Such a file sets only `name`, `version`, `about` and `resources`; the parts set the rest.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100)
    version: int = Field(default=1, ge=1)
    about: str = ""
    protocol: Literal["fair", "paper", "tuned"] = "fair"
    datasets: tuple[Annotated[Choice, BeforeValidator(named)], ...] = Field(min_length=1)
    backbones: tuple[Annotated[Backbone, BeforeValidator(named)], ...] = Field(min_length=1)
    losses: tuple[Annotated[Loss, BeforeValidator(named)], ...] = ()
    levels: tuple[AnyLevel, ...] = Field(default=LEVELS, validate_default=True)
    arms: tuple[str, ...] = ()
    floors: tuple[Literal["features", "untrained", "pixels"], ...] = FLOORS
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(default=(0, 1, 2), min_length=1)
    folds: int | None = Field(default=None, ge=2)
    metrix: Level = Level()
    model: Model = Model()
    images: Images = Images()
    training: Training = Training()
    resources: Resources = Resources()
    search: Search = Search()
    keep: Literal["weights", "embeddings", "none"] = "embeddings"
    analysis: bool = False
    ks: Ks = None
    compute_matched: bool = False
    parts: tuple["Grid", ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _levels(cls, content: Any) -> Any:
        """Complete every level with `metrix` before validation fills in the defaults of what it leaves out."""
        shared, levels = content.get("metrix"), content.get("levels", LEVELS)
        if isinstance(shared, Mixing):
            shared = shared.model_dump()
        if not isinstance(levels, list | tuple) or not isinstance(shared or {}, dict):
            return content
        return {**content, "levels": tuple(_level(item, shared or {}) for item in levels)}

    @classmethod
    def load(
        cls,
        source: str | Path,
        overrides: Iterable[str] = (),
        only: Mapping[str, Sequence[str]] | None = None,
        check: Check = lambda settings: (),
    ) -> "Grid":
        """Return the grid of a file, or a shipped grid by its name (`quick`), after overrides.

        `overrides` are `key=value` with a dotted or a unique last key (`training.epochs=20`, `epochs=20`).
        `only` keeps the named entries of a list: {"losses": ["contrastive"], "seeds": ["0", "1"]}.
        `check` returns further problems of the settings in a file, which may include unknown ones.
        Raise GridError with all problems, one sentence each.
        """
        return cls._read(grids.find(source), list(overrides), only or {}, check, ())

    @classmethod
    def _read(
        cls,
        path: Path,
        overrides: list[str],
        only: Mapping[str, Sequence[str]],
        check: Check,
        above: tuple[Path, ...],
    ) -> "Grid":
        """Return the grid of a file; `above` are the files that include it."""
        content = grids.read(path)
        content = {key: value for key, value in content.items() if value is not None or key not in SECTIONS}
        if "include" in content:
            return cls._joined(path, content, overrides, only, check, above)
        problems = [problem for text in overrides if (problem := changes.apply(content, text, cls))]
        problems += _narrow(content, only)
        problems += check(content)
        try:
            grid = cls.model_validate(content)
        except ValidationError as error:
            raise GridError(str(path), [*problems, *sentences(error, cls), *_unknown_names(content)]) from None
        problems += [*_unknown_names(content), *_unused(content), *grid._contradictions()]
        if problems := problems or grid._repeated():
            raise GridError(str(path), problems)
        return grid

    @classmethod
    def _joined(
        cls,
        path: Path,
        content: dict[str, Any],
        overrides: list[str],
        only: Mapping[str, Sequence[str]],
        check: Check,
        above: tuple[Path, ...],
    ) -> "Grid":
        """Return the grid that combines the included ones, or those of them that have the wanted datasets."""
        above, wanted = (*above, path.resolve()), set(only.get("datasets", ()))
        rest = {field: names for field, names in only.items() if field != "datasets"}
        parts, problems = [], _include_problems(content)
        for name in grids.included(content):
            try:
                file = grids.find(name, path.parent)
                if file.resolve() in above:
                    circle = " → ".join(each.name for each in (*above, file))
                    raise GridError(name, [f"a grid cannot include itself: {circle}"])
                parts.append(cls._read(file, overrides, rest, check, above))
            except GridError as error:
                problems += [f"include: {name}: {problem}" for problem in error.problems]
        held = {dataset.name for part in parts for dataset in part.datasets}
        if not problems:
            problems += [unknown("dataset of this grid", name, held) for name in sorted(wanted - held)]
            problems += _part_conflicts(parts)
        if problems:
            raise GridError(str(path), problems)
        parts = [part for part in parts if not wanted or wanted & {dataset.name for dataset in part.datasets}]
        first = parts[0].model_dump(mode="json", exclude={"name", "version", "about", "datasets", "parts"})
        own = {key: content[key] for key in ALLOWED_WITH_INCLUDE if key in content}
        datasets = [dataset for part in parts for dataset in part.datasets]
        try:
            return cls.model_validate({**first, **own, "datasets": datasets, "parts": parts})
        except ValidationError as error:
            raise GridError(str(path), sentences(error, cls)) from None

    def _contradictions(self) -> list[str]:
        """Return a sentence for each contradiction between settings."""
        problems = []
        for field in ("datasets", "backbones", "losses"):
            names = [choice.name for choice in getattr(self, field)]
            problems += [
                f"{field}: {name} is listed twice" for name in sorted({n for n in names if names.count(n) > 1})
            ]
        for field in ("seeds", "levels", "floors", "arms"):
            values = list(map(str, getattr(self, field)))
            problems += [f"{field}: {v} is listed twice" for v in sorted({v for v in values if values.count(v) > 1})]
        if not (self.losses or self.arms or any(map(self._floors, self.backbones))):
            problems.append("losses: there is no loss, arm or floor to run")
        if self.protocol == "tuned" and self.search.search_seed in self.seeds:
            problems.append(
                f"search.search_seed: {self.search.search_seed} is also one of the final seeds; they must differ"
            )
        if self.folds and self.protocol == "paper":
            problems.append(
                f"folds: {self.folds} folds for validation, but protocol paper has no validation; choose protocol "
                "fair or tuned, or remove folds"
            )
        random = [backbone.name for backbone in self.backbones if backbone.pretrained is False]
        if self.model.backbone == "frozen" and random:
            problems.append(
                f"model.backbone: frozen, but {', '.join(random)} {'has' if len(random) == 1 else 'have'} no "
                "pretrained weights; in backbones, set pretrained to true or to a file"
            )
        gpus = self.resources.gpus_per_trial
        if self.model.backbone == "frozen" and gpus != "auto" and gpus > 1:
            problems.append(
                f"resources.gpus_per_trial: {gpus:g} GPUs for a frozen backbone, which trains only a head, on one "
                "device; use at most 1"
            )
        compiled = self.training.compile
        if compiled != "none" and self.model.backbone == "frozen":
            problems.append(
                f"training.compile: {compiled} compiles the backbone, which is frozen and computes its features "
                "once; set compile to none"
            )
        if compiled != "none" and gpus != "auto" and gpus > 1:
            problems.append(
                f"training.compile: {compiled} works on one GPU, but gpus_per_trial is {gpus:g}; set compile to "
                "none, or gpus_per_trial to at most 1"
            )
        if self.model.backbone == "trained" and self.images.views > 1:
            problems.append(
                f"images.views: {self.images.views} views are for a frozen backbone; a trained one sees new crops in "
                "every step. Set model.backbone to frozen, or remove views"
            )
        if self.metrix.at != "embedding":
            problems.append("metrix.at: the levels of a grid are listed in `levels`; remove metrix.at")
        return problems

    def _repeated(self) -> list[str]:
        """Return the arms that are listed twice, as in `levels: [input, {at: input, weight: 0.4}]`."""
        problems = {}
        for backbone in self.backbones:
            labels = [arm.label for arm, _ in self._arms(backbone)]
            problems |= {
                f"arms: {label} is listed twice, in two forms": None for label in labels if labels.count(label) > 1
            }
        return list(problems)

    def trials(self) -> list[Trial]:
        """Return all trials, seeds outermost and folds innermost, so that a partial run has complete seeds."""
        if self.parts:
            trials = {trial.id: trial for part in self.parts for trial in part.trials()}
            return sorted(trials.values(), key=lambda trial: trial.seed)
        cells = [
            (dataset, backbone.model_copy(update={"stage": None, "lr_scale": 1.0}), arm, training)
            for dataset, backbone in itertools.product(self.datasets, self.backbones)
            for arm, training in self._arms(backbone)
        ]
        wholes = [
            Trial(
                dataset=dataset,
                backbone=backbone,
                model=self.model,
                images=self.images,
                training=training,
                arm=arm,
                protocol=self.protocol,
                keep=self.keep,
                analysis=self.analysis,
                ks=self.ks,
                seed=seed,
                folds=self.folds,
            )
            for number, seed in enumerate(self.seeds)
            for dataset, backbone, arm, training in cells
            if number == 0 or arm.loss not in SEEDLESS
        ]
        return [trial for whole in wholes for trial in whole.each_fold()]

    def _arms(self, backbone: Backbone) -> list[tuple[Arm, Training]]:
        arms = [(Arm.of(floor, {}), self._training(None, backbone)) for floor in self._floors(backbone)]
        for loss, level in itertools.product(self.losses, self.levels):
            metrix, rival = None, level if isinstance(level, Rival) else None
            if level.at in METRIX:
                stage = (level.stage or backbone.stage) if level.at == "feature" else None
                metrix = Level(**{**level.model_dump(), "stage": stage})
            arms.append((Arm.of(loss.name, loss.options, metrix, rival), self._training(loss, backbone)))
        chosen = {loss.name: loss for loss in self.losses}
        for text in self.arms:
            arm = Arm.parse(text)
            arms.append((arm, self._training(chosen.get(arm.loss), backbone)))
        return arms

    def _floors(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the floors of a network. If there are any, the features of a pretrained one are among them."""
        others = tuple(floor for floor in self.floors if floor != FEATURES)
        return (FEATURES, *others) if self.floors and backbone.pretrained else others

    def _training(self, loss: Loss | None, backbone: Backbone) -> Training:
        own = {k: v for k in SHARED_BY_A_LOSS if loss and (v := getattr(loss, k)) is not None}
        lr = own.get("lr", self.training.lr) * backbone.lr_scale
        return self.training.model_copy(update={**own, "lr": float(f"{lr:.12g}")})


def _level(item: Any, shared: dict[str, Any]) -> Any:
    if isinstance(item, Mixing):
        item = item.model_dump()
    own = {"at": item} if isinstance(item, str) else item
    return {**(shared if own.get("at", "baseline") in LEVELS else {}), **own} if isinstance(own, dict) else item


def _include_problems(content: dict[str, Any]) -> list[str]:
    """Return what is wrong with a list of included grids, and the settings that belong in the included grids."""
    own, problems = (*ALLOWED_WITH_INCLUDE, "include"), []
    others = [key for key in content if key not in own]
    if settings := [key for key in others if key in Grid.model_fields]:
        problems.append(
            f"{', '.join(settings)}: a grid that includes others sets only {', '.join(ALLOWED_WITH_INCLUDE)}; "
            "set it in the included grids, or with --set for all of them"
        )
    problems += [f"{key}: " + unknown("setting", key, own) for key in others if key not in settings]
    names = content["include"]
    if not isinstance(names, list) or not names or len(grids.included(content)) < len(names):
        problems.append(f"include: {names!r} is not a list of grids, such as [quick, mine.yaml]")
    return problems


def _part_conflicts(parts: Sequence["Grid"]) -> list[str]:
    """Return what two parts of a grid would run under different settings, whose results cannot share a table."""
    tables: dict[tuple, tuple[str, Any]] = {}
    cells: dict[tuple, tuple[str, Any]] = {}
    problems: dict[str, None] = {}
    for part in parts:
        for trial in part.trials():
            repeated = (*trial.cell, trial.seed, trial.fold)
            for known, key, content in ((tables, trial.cell[:2], trial.shared), (cells, repeated, trial.id)):
                first, before = known.setdefault(key, (part.name, content))
                if before != content:
                    place = " with ".join(trial.cell[:2])
                    problems[f"include: {first} and {part.name} run {place} under different settings"] = None
    return list(problems)


def _narrow(content: dict[str, Any], only: Mapping[str, Sequence[str]]) -> list[str]:
    """Keep the named entries of the grid's lists, and return a sentence for each name that the grid does not list.

    A loss or level that the grid does not list runs with its defaults, so that a new one needs no new grid.
    """
    problems = []
    for field, wanted in only.items():
        listed = content.get(field, Grid.model_fields[field].default)
        if not isinstance(listed, list | tuple):
            continue  # validation reports that it is not a list
        names = [str(item.get("name", item.get("at")) if isinstance(item, dict) else item) for item in listed]
        if field == "seeds":
            problems += [f"--seeds {name}: a seed is a whole number" for name in wanted if not name.isdecimal()]
            content[field] = [int(name) for name in wanted if name.isdecimal()] or listed
            continue
        for name in wanted:
            if name not in names and not _is_registered(field, name):
                sentence = unknown(f"entry of the grid's {field}", name, names)
                if not names:
                    sentence = f"the grid lists no {field}{INSTEAD.get(field, '')}"
                problems.append(f"--{field} {name}: {sentence}")
        content[field] = [item for item, name in zip(listed, names, strict=True) if name in wanted]
        content[field] += [name for name in wanted if name not in names]
    return problems


def _is_registered(field: str, name: str) -> bool:
    if field == "levels":
        return name in registry.levels()
    return field == "losses" and not _problems_of(lambda: registry.loss(name), field)


def _unknown_names(content: dict[str, Any]) -> list[str]:
    """Return sentences about losses, arms, datasets and hyperparameters that do not exist."""
    problems = []
    for choice in _choices(content, "losses"):
        options = choice.get("options")
        options = options if isinstance(options, dict) else {}
        problems += _problems_of(lambda c=choice, o=options: Arm.of(c["name"], o), "losses")
    arms = content.get("arms")
    for text in arms if isinstance(arms, list) else ():
        problems += _problems_of(lambda t=text: Arm.parse(str(t)), "arms")
    for choice in _choices(content, "datasets"):
        problems += _problems_of(
            lambda c=choice: registry.entry("harness.data.datasets", c["name"], "dataset"), "datasets"
        )
    return problems


def _unused(content: dict[str, Any]) -> list[str]:
    """Return sentences about settings that a level does not use: any for a baseline, a stage except for features."""
    problems = []
    levels = content.get("levels")
    for level in levels if isinstance(levels, list | tuple) else ():
        at = level.get("at") if isinstance(level, dict) else None
        unused = [key for key, value in level.items() if key != "at"] if at == "baseline" else []
        if at in ("embedding", "input") and level.get("stage") is not None:
            unused = ["stage"]
        problems += [f"levels: {key} has no effect at level {at}; remove it" for key in unused]
    return problems


def _choices(content: dict[str, Any], field: str) -> list[dict[str, Any]]:
    listed = content.get(field)
    choices = [named(item) for item in listed] if isinstance(listed, list | tuple) else []
    return [c for c in choices if isinstance(c, dict) and isinstance(c.get("name"), str)]


def _problems_of(action: Callable[[], Any], where: str) -> list[str]:
    """Return the problems that an action raises, one sentence each, with `where` in front."""
    try:
        action()
    except GridError as error:
        return [f"{where}: {problem}" for problem in error.problems]
    except UserError as error:
        return [f"{where}: {error}"]
    return []


INSTEAD = {"arms": ": choose among its losses and levels with --losses and --levels, or run metrix-bench trial --arm"}
SECTIONS = {name for name, field in Grid.model_fields.items() if section(field.annotation) is field.annotation}
