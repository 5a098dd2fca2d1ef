"""Grids and trials: what a YAML file says, checked and turned into values.

A `Grid` is what a researcher writes: lists of datasets, backbones, losses, levels and seeds, and the settings all
of them share. Its product is a list of `Trial`s: frozen, complete values, each of which can be run anywhere.
Every setting is declared here once, with its type, default and range; unknown keys are refused with the nearest
valid one, all mistakes of a file at once.
"""

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from harness import registry
from harness.errors import UserError

FLOORS = ("untrained", "pixels")
LEVELS = ("baseline", "embedding", "feature", "input")
CENTRE_SHARE = 224 / 256  # the customary test crop
THUMBNAIL_PX = 64  # up to this side an image is shown whole
OF_AN_INCLUDING_GRID = ("name", "version", "about", "resources")  # all that a grid sets which includes others
SHARED_BY_A_LOSS = ("lr", "schedule", "step_epochs", "gamma")  # may differ between losses, never within one


class GridError(UserError):
    """A grid that cannot run; `problems` holds one sentence for each mistake found."""

    def __init__(self, where: str, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__(f"{where}: " + "\n  ".join(["cannot run:", *problems]))


class Value(BaseModel):
    """A frozen setting that refuses what it does not know, values of another type and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, content: Any) -> Any:
        """Files write a tuple as a list, which strict types would refuse."""
        if not isinstance(content, dict):
            return content
        return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}


def _finite(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse NaN and infinity among options, whose types only their owner knows."""
    for key, value in _flat(options):
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"{key} is {value}; a number must be finite")
    return options


class Choice(Value):
    """An entry of a register with its keyword options, written `name` or `{name: …, options: {…}}`."""

    name: str
    options: Annotated[dict[str, Any], AfterValidator(_finite)] = {}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1)]


class Backbone(Choice):
    """A timm network. `options` go to timm; `stage` is where the feature level mixes (None: the last feature map).

    `lr_scale` multiplies every learning rate of the grid with this network: a transformer wants smaller steps.
    `pretrained` is true for timm's published weights of this name, or a file. `mean` and `std` (of the channels, for
    pixels in [0, 1]) and `interpolation` are how its images were prepared; what is not set, timm says for the name.
    """

    pretrained: bool | str = False
    mean: tuple[Share, Share, Share] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    stage: str | None = None
    lr_scale: float = Field(1.0, gt=0)


class Loss(Choice):
    """A loss with its hyperparameters (`options`) and, where they differ from the grid's, its own step sizes."""

    lr: float | None = Field(None, gt=0)
    schedule: Literal["constant", "step", "cosine"] | None = None
    step_epochs: int | None = Field(None, ge=1)
    gamma: float | None = Field(None, gt=0, le=1)


class Level(Value):
    """Where and how Metrix mixes; the keywords of `metrix.Metrix`, with the same defaults."""

    at: Literal["embedding", "feature", "input"] = "embedding"
    stage: str | None = None
    pairs: Literal["alternate", "pos-neg", "anc-neg", "pos-pos", "neg-neg"] = "alternate"
    weight: float = Field(0.4, ge=0)
    alpha: float = Field(2.0, gt=0, le=1000)
    renormalize: bool = True
    lambda_per: Literal["batch", "example"] = "batch"
    hardest: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    max_mixed: int | None = Field(None, ge=1)

    def __str__(self) -> str:
        given = {k: v for k, v in self.model_dump(exclude_defaults=True).items() if k != "at"}
        return self.at + _brackets(given)


class Choosable(Level):
    """A level as a grid lists it, `feature` or `{at: feature, hardest: 3}`; what it leaves out, `metrix` says."""

    at: Literal["baseline", "embedding", "feature", "input"]


class Model(Value):
    """The embedder around the backbone: pooling, a linear head to `dim`, l2-normalisation."""

    dim: int = Field(512, ge=1, le=2**16)
    pooling: Literal["avg", "max", "avg+max", "token"] = "avg"
    norm: Literal["train", "frozen"] = "train"


class Images(Value):
    """What the network sees. Training: random resized crop (share of the area) and flip; test: resize, centre crop.

    `path` says where crops are cut from: `cache` from images decoded once, their shorter side `cache_side_px`;
    `classical` from the files as they are, decoded and transformed image by image every time.
    `cache_side_px` none means 8/7 of `side_px`, such as 256 for 224; up to 64 px, where images are characters or
    thumbnails, `side_px`. `flip` auto means: yes, unless a mirror image belongs to another class, as with characters.
    """

    path: Literal["cache", "classical"] = "cache"
    side_px: int = Field(224, ge=8, le=4096)
    cache_side_px: int | None = Field(None, ge=8, le=8192)
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    flip: bool | Literal["auto"] = "auto"

    @property
    def stored_px(self) -> int:
        """The shorter side of a decoded image: `cache_side_px`, or what none means."""
        whole = self.side_px <= THUMBNAIL_PX
        return self.cache_side_px or (self.side_px if whole else round(self.side_px / CENTRE_SHARE))

    @property
    def centre_share(self) -> float:
        """The side of the test's centre crop as a share of the resized image: 224 of 256, 1 where all is shown."""
        return max(self.side_px / self.stored_px, CENTRE_SHARE)

    @model_validator(mode="after")
    def _check(self):
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale is {list(self.crop_scale)}; it must rise within (0, 1]")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio is {list(self.crop_ratio)}; it must rise from a number above 0")
        if self.cache_side_px is not None and self.cache_side_px < self.side_px:
            raise ValueError(f"cache_side_px {self.cache_side_px} is smaller than side_px {self.side_px}")
        return self


class Training(Value):
    """How long, on what batches and with what steps. Equal for every arm of a table, but for a loss's own lr."""

    epochs: int = Field(60, ge=1, le=1_000_000)
    batch_size: int = Field(100, ge=2)
    sampler: Literal["balanced", "shuffle"] = "balanced"
    examples_per_class: int = Field(5, ge=1)
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["constant", "step", "cosine"] = "step"
    step_epochs: int = Field(10, ge=1)
    gamma: float = Field(0.1, gt=0, le=1)
    warmup_epochs: int = Field(0, ge=0)
    clip_value: float | None = Field(10.0, gt=0)
    precision: Literal["float32", "bf16"] = "float32"
    threads: int = Field(1, ge=1, le=1024)

    @model_validator(mode="after")
    def _check(self):
        if self.sampler == "balanced" and self.batch_size % self.examples_per_class:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of examples_per_class {self.examples_per_class}"
            )
        return self


class Resources(Value):
    """What one trial occupies.

    `gpus_per_trial` auto: where there are GPUs, as many trials share one as their memory, which is measured, allows;
    a share such as 0.5; or a number of GPUs, over which each batch of a trial is divided.
    """

    cpus_per_trial: int = Field(1, ge=1)
    gpus_per_trial: float | Literal["auto"] = "auto"
    retries: int = Field(2, ge=0, le=1000)
    epoch_timeout_s: float = Field(3600, gt=0)

    @model_validator(mode="after")
    def _check(self):
        gpus = self.gpus_per_trial
        if gpus != "auto" and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
            raise ValueError(f"gpus_per_trial is {gpus:g}; it is auto, a share up to 1, or a whole number of GPUs")
        return self


class Search(Value):
    """The tuning of protocol `tuned`: equally many `trials` for every arm, the first with the defaults.

    Searched: the loss's constants over the space its file declares, the learning rate over `lr_range` times the
    grid's, and for Metrix arms `weight` and `alpha`. A round proposes `round_of` trials. `search_seed` is the
    training seed of all search trials; final seeds must differ.
    """

    trials: int = Field(8, ge=2, le=10_000)
    round_of: int = Field(4, ge=1)
    search_seed: int = Field(1000, ge=0)
    lr_range: tuple[float, float] = (0.1, 10.0)
    weight_range: tuple[float, float] = (0.05, 1.0)
    alpha_range: tuple[float, float] = (0.5, 4.0)

    @model_validator(mode="after")
    def _check(self):
        for name in ("lr_range", "weight_range", "alpha_range"):
            low, high = getattr(self, name)
            if not 0 < low < high:
                raise ValueError(f"{name} is {[low, high]}; a space rises from a number above 0")
        return self


class Arm(Value):
    """A row of the leaderboard: a loss, plain or with Metrix, or a floor that is not trained by any loss.

    Written `multi_similarity`, `multi_similarity+embedding`, `contrastive[margin=0.3]+feature[stage=layer3]`:
    every hyperparameter that is not the default stands in brackets. `contrastive@2x` trains for twice the epochs,
    with every milestone scaled: a baseline at the forward passes of a variant.
    """

    loss: str
    options: dict[str, Any] = {}
    metrix: Level | None = None
    longer: float = Field(1.0, gt=0, le=1000)
    tuned: str | None = None  # the arm as the grid declares it, where a search has chosen its settings

    @classmethod
    def parse(cls, text: str) -> "Arm":
        """The arm that `text` writes, complete with its loss's defaults; GridError says what is wrong with it."""
        bracket = r"(?:\[([^\]]*)\])?"
        match = re.fullmatch(rf"([\w:]+){bracket}(?:\+(\w+){bracket})?(?:@(\d+\.?\d*)x)?", text.strip())
        where = f"arm {text!r}"
        if not match:
            raise GridError(where, ["it is not written loss, loss+level or loss[key=value]+level[key=value]"])
        loss, options, at, level, longer = match.groups()
        try:
            metrix = None if at in (None, "baseline") else Level(**{"at": at, **_pairs(where, level)})
            arm = cls.of(loss, _pairs(where, options), metrix)
            return arm if longer is None else cls(**{**dict(arm), "longer": float(longer)})
        except ValidationError as error:
            raise GridError(where, _sentences(error, Level if error.title == "Level" else cls)) from None

    @classmethod
    def of(cls, loss: str, options: dict[str, Any], metrix: Level | None = None) -> "Arm":
        """The arm of a loss, its `options` completed with the defaults (so that an id holds every value).

        Raises RegisterError for an unknown loss, GridError for options that it does not have.
        """
        if loss in FLOORS:
            if options or metrix:
                raise GridError(f"arm {loss!r}", [f"{loss} is a floor: it takes neither options nor a level"])
            return cls(loss=loss)
        defaults = registry.loss(loss).parameters
        if strange := [key for key in options if key not in defaults]:
            problems = [registry.unknown(f"parameter of {loss}", key, defaults) for key in strange]
            raise GridError(f"loss {loss!r}", problems)
        return cls(loss=loss, options={**defaults, **options}, metrix=metrix)

    @property
    def at(self) -> str:
        """The level: baseline, embedding, feature, input, longer (a baseline that trains longer), or floor."""
        if self.loss in FLOORS:
            return "floor"
        return self.metrix.at if self.metrix else "baseline" if self.longer == 1 else "longer"

    @property
    def baseline(self) -> str:
        """The label of the same loss without Metrix."""
        if self.tuned:
            return Arm.parse(self.tuned).baseline
        return Arm(loss=self.loss, options=self.options).label

    @property
    def label(self) -> str:
        """The arm as it is written, non-default values in brackets; as the grid declares it where it was tuned."""
        if self.tuned:
            return self.tuned
        defaults = {} if self.loss in FLOORS else registry.loss(self.loss).parameters
        given = {k: v for k, v in self.options.items() if v != defaults.get(k)}
        level = f"+{self.metrix}" if self.metrix else ""
        return self.loss + _brackets(given) + level + (f"@{self.longer:g}x" if self.longer != 1 else "")


_written: dict[int, tuple[Value, str]] = {}


def _as_json(value: Any) -> str:
    """`value` as JSON with sorted keys. Trials of a grid share their parts: each part is written once."""
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, Value):
        return json.dumps(value)
    part, text = _written.get(id(value), (None, ""))
    if part is not value:  # an id is another value's once its own is gone: what is kept here is not
        if len(_written) > 10_000:
            _written.clear()
        content = value.model_dump(mode="json")
        content = {name: given for name, given in content.items() if given is not None or name not in LATER}
        text = json.dumps(content, sort_keys=True)
        _written[id(value)] = value, text
    return text


def _ks(value: Any) -> Any:
    """The K of R@K as a file writes them: a list of whole numbers from 1, in rising order, each once."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{_shown(value)} is not a list of the K of R@K, such as [1, 10]")
    if wrong := [k for k in value if isinstance(k, bool) or not isinstance(k, int) or k < 1]:
        raise ValueError(f"{wrong[0]!r} of {list(value)} is not a whole number from 1")
    if (rising := sorted(set(value))) != list(value):
        raise ValueError(f"{list(value)} does not have each K once, in rising order: write {rising}")
    return tuple(value)


Ks = Annotated[tuple[int, ...] | None, BeforeValidator(_ks)]


class Trial(Value):
    """One cell of the grid with one seed: everything that decides its result, and nothing else.

    `ks` are the K of R@K that it scores; none means those customary for its dataset. Where data lie, which device
    runs it and when are not part of it. Under cross-validation it is one of `folds`
    trials of its cell and seed, the one whose validation classes are those of `fold`, from 1; with `folds` and no
    `fold` it stands for all of them together, as tables have it.
    """

    dataset: Choice
    backbone: Backbone
    model: Model
    images: Images
    training: Training
    arm: Arm
    protocol: Literal["fair", "paper", "tuned", "search"] = "fair"
    keep: Literal["weights", "embeddings", "none"] = "embeddings"
    analysis: bool = False
    ks: Ks = None
    seed: int = Field(0, ge=0)
    fold: int | None = Field(None, ge=1)
    folds: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _check(self):
        if self.fold is not None and self.fold > (self.folds or 0):
            raise ValueError(f"fold {self.fold} of {self.folds or 'none'}; folds are counted from 1")
        return self

    @property
    def digest(self) -> str:
        """sha256 of the trial's content (less `keep` and `analysis`, which change no score), hexadecimal."""
        # What is not there changes nothing: records from before there were folds or ks keep their names.
        values = ((name, getattr(self, name)) for name in _DECISIVE)
        content = [f'"{name}": {_as_json(value)}' for name, value in values if value is not None or name not in LATER]
        return hashlib.sha256(f"{{{', '.join(content)}}}".encode()).hexdigest()

    @property
    def id(self) -> str:
        """Readable and unique: `glyphs-test_resnet-contrastive+input-s0-3f9a12`, of a fold `…-s0-f1of4-3f9a12`."""
        arm = self.arm.loss + (f"+{self.arm.at}" if self.arm.at not in ("baseline", "floor") else "")
        name = f"{self.dataset.name}-{self.backbone.name}-{arm}-{self.repetition}"
        return re.sub(r"[^\w+.-]", "_", name) + f"-{self.digest[:8]}"

    @property
    def repetition(self) -> str:
        """What tells it from the other trials of its cell: `s0`, of a fold `s0-f1of4`, of all four `s0-4folds`."""
        if self.folds is None:
            return f"s{self.seed}"
        return f"s{self.seed}-" + (f"f{self.fold}of{self.folds}" if self.fold else f"{self.folds}folds")

    @property
    def seed_and_fold(self) -> str:
        """The same in a sentence: `seed 0`, `seed 0 fold 1 of 4`."""
        return f"seed {self.seed}" + (f" fold {self.fold} of {self.folds}" if self.fold else "")

    @property
    def whole(self) -> "Trial":
        """The trial that stands for all folds of this one's cell and seed; itself where there are none."""
        return self if self.fold is None else self.model_copy(update={"fold": None})

    def each_fold(self) -> "list[Trial]":
        """The trials that run for this one: one for each of its folds; itself where there are none."""
        if self.folds is None or self.fold is not None:
            return [self]
        return [self.model_copy(update={"fold": fold}) for fold in range(1, self.folds + 1)]

    @property
    def schedule(self) -> Training:
        """The training settings as this arm runs them: epochs and milestones times `arm.longer`."""
        times, names = self.arm.longer, ("epochs", "step_epochs", "warmup_epochs")
        scaled = {name: round(getattr(self.training, name) * times) for name in names}
        return self.training.model_copy(update={**scaled, "step_epochs": max(1, scaled["step_epochs"])})

    @property
    def cell(self) -> tuple[str, str, str]:
        """(dataset, backbone, arm): what seeds repeat."""
        return self.dataset.name, self.backbone.name, self.arm.label

    @property
    def shared(self) -> dict[str, Any]:
        """The factors that must be equal within one table of a dataset and a backbone (FAIR-08), flattened."""
        without = {"fold"} if self.folds else {"fold", "folds"}
        content = self.model_dump(mode="json", exclude={"arm", "seed", "keep", "analysis", *without})
        for name in SHARED_BY_A_LOSS:
            content["training"].pop(name)
        return dict(_flat(content))


LATER = ("fold", "folds", "ks", "mean", "std", "interpolation")  # settings that trials have not always had
_DECISIVE = tuple(sorted(Trial.model_fields.keys() - {"keep", "analysis"}))  # what a trial's digest is made of

ManyChoices = Annotated[Choice, BeforeValidator(_named)]


class Grid(Value):
    """The experiment a YAML file describes: datasets × backbones × (losses × levels + arms + floors) × seeds.

    `compute_matched` adds, for each Metrix arm that crosses the network more often than its baseline, the baseline
    trained for as many forward passes. `analysis` adds alignment, uniformity, utilization and positivity to the
    records. `folds` (none: one fixed validation split) runs every cell and seed that many times, each time with
    another part of the training classes for validation; the score of the seed is the mean (Musgrave et al. 2020, A
    Metric Learning Reality Check). `ks` are the K of R@K, such as [1, 10] (none: those customary for the dataset).
    A file with `include: [grid, …]` runs several grids as one, its `parts`: names that ship, or paths from the folder
    of the including file. Such a file sets nothing but `name`, `version`, `about`
    and `resources`; all else is said by the parts.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100)
    version: int = Field(1, ge=1)
    about: str = ""
    protocol: Literal["fair", "paper", "tuned"] = "fair"
    datasets: tuple[ManyChoices, ...] = Field(min_length=1)
    backbones: tuple[Annotated[Backbone, BeforeValidator(_named)], ...] = Field(min_length=1)
    losses: tuple[Annotated[Loss, BeforeValidator(_named)], ...] = ()
    levels: tuple[Choosable, ...] = Field(LEVELS, validate_default=True)
    arms: tuple[str, ...] = ()
    floors: tuple[Literal["untrained", "pixels"], ...] = FLOORS
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0, 1, 2), min_length=1)
    folds: int | None = Field(None, ge=2)
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
        """Complete every level by `metrix`: only here is it known what a level leaves out."""
        shared, levels = content.get("metrix"), content.get("levels", LEVELS)
        if isinstance(shared, Level):
            shared = shared.model_dump()
        if not isinstance(levels, list | tuple) or not isinstance(shared or {}, dict):
            return content
        return {**content, "levels": tuple(_level(item, shared or {}) for item in levels)}

    @classmethod
    def load(
        cls, source: str | Path, overrides: Iterable[str] = (), only: dict[str, Sequence[str]] | None = None
    ) -> "Grid":
        """The grid of a file, or of a name that ships (`quick`), after overrides.

        `overrides` are `key=value` with a dotted or a unique last key (`training.epochs=20`, `epochs=20`).
        `only` keeps the named entries of a list: {"losses": ["contrastive"], "seeds": ["0", "1"]}.
        Raises GridError with every problem found, each in one sentence.
        """
        return cls._read(find(source), list(overrides), only or {}, ())

    @classmethod
    def _read(
        cls, path: Path, overrides: list[str], only: dict[str, Sequence[str]], above: tuple[Path, ...]
    ) -> "Grid":
        """The grid of a file; `above` are the files that include it."""
        from harness.fairness import rules  # which look at trials, and so import this file

        content = _content(path)
        if "include" in content:
            return cls._joined(path, content, overrides, only, above)
        problems = [p for text in overrides if (p := _override(content, text))]
        problems += _narrow(content, only)
        problems += [finding.sentence for finding in rules.over_grid(content)]
        try:
            grid = cls.model_validate(content)
        except ValidationError as error:
            raise GridError(str(path), [*problems, *_sentences(error), *_strangers(content)]) from None
        problems += [*_strangers(content), *_idle(content), *grid._contradictions()]
        if problems := problems or grid._repeated():
            raise GridError(str(path), problems)
        return grid

    @classmethod
    def _joined(
        cls,
        path: Path,
        content: dict[str, Any],
        overrides: list[str],
        only: dict[str, Sequence[str]],
        above: tuple[Path, ...],
    ) -> "Grid":
        """The grid that runs the included ones, or those of them that hold the wanted datasets."""
        above, wanted = (*above, path.resolve()), set(only.get("datasets", ()))
        rest = {field: names for field, names in only.items() if field != "datasets"}
        parts, problems = [], _not_of_an_including_grid(content)
        for name in _included(content):
            try:
                file = find(name, path.parent)
                if file.resolve() in above:
                    circle = " → ".join(each.name for each in (*above, file))
                    raise GridError(name, [f"a grid cannot include itself: {circle}"])
                parts.append(cls._read(file, overrides, rest, above))
            except GridError as error:
                problems += [f"include: {name}: {problem}" for problem in error.problems]
        held = {dataset.name for part in parts for dataset in part.datasets}
        if not problems:
            problems += [registry.unknown("dataset of this grid", name, held) for name in sorted(wanted - held)]
            problems += _apart(parts)
        if problems:
            raise GridError(str(path), problems)
        parts = [part for part in parts if not wanted or wanted & {dataset.name for dataset in part.datasets}]
        first = parts[0].model_dump(mode="json", exclude={"name", "version", "about", "datasets", "parts"})
        own = {key: content[key] for key in OF_AN_INCLUDING_GRID if key in content}
        datasets = [dataset for part in parts for dataset in part.datasets]
        try:
            return cls.model_validate({**first, **own, "datasets": datasets, "parts": parts})
        except ValidationError as error:
            raise GridError(str(path), _sentences(error)) from None

    def _contradictions(self) -> list[str]:
        found = []
        for field in ("datasets", "backbones", "losses"):
            names = [choice.name for choice in getattr(self, field)]
            found += [f"{field}: {name} is listed twice" for name in sorted({n for n in names if names.count(n) > 1})]
        for field in ("seeds", "levels", "floors", "arms"):
            values = list(map(str, getattr(self, field)))
            found += [f"{field}: {v} is listed twice" for v in sorted({v for v in values if values.count(v) > 1})]
        if not (self.losses or self.arms or self.floors):
            found.append("losses: there is no loss, arm or floor to run")
        if self.protocol == "tuned" and self.search.search_seed in self.seeds:
            found.append(
                f"search.search_seed: {self.search.search_seed} is also a final seed; the two must be disjoint"
            )
        if self.folds and self.protocol == "paper":
            found.append(
                f"folds: {self.folds} folds of validation classes, and protocol paper has no validation; choose "
                "protocol fair or tuned, or take folds away"
            )
        if self.metrix.at != "embedding":
            found.append("metrix.at: the levels of a grid stand in `levels`; take metrix.at away")
        return found

    def _repeated(self) -> list[str]:
        """Arms that are written in two ways: `levels: [input, {at: input, weight: 0.4}]`, or as an arm once more."""
        found = {}
        for backbone in self.backbones:
            labels = [arm.label for arm, _ in self._arms(backbone)]
            found |= {
                f"arms: {label} is listed twice, in two ways": None for label in labels if labels.count(label) > 1
            }
        return list(found)

    def trials(self) -> list[Trial]:
        """Every trial of the product, seeds outermost, folds innermost: a partial run has whole seeds first."""
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
            if arm.loss != "pixels" or number == 0  # no seed enters the cosine of raw images
        ]
        return [trial for whole in wholes for trial in whole.each_fold()]

    def _arms(self, backbone: Backbone) -> list[tuple[Arm, Training]]:
        arms = [(Arm.of(floor, {}), self._training(None, backbone)) for floor in self.floors]
        for loss, level in itertools.product(self.losses, self.levels):
            metrix = None
            if level.at != "baseline":
                stage = (level.stage or backbone.stage) if level.at == "feature" else None
                metrix = Level(**{**level.model_dump(), "stage": stage})
            arms.append((Arm.of(loss.name, loss.options, metrix), self._training(loss, backbone)))
        chosen = {loss.name: loss for loss in self.losses}
        for text in self.arms:
            arm = Arm.parse(text)
            arms.append((arm, self._training(chosen.get(arm.loss), backbone)))
        return arms

    def _training(self, loss: Loss | None, backbone: Backbone) -> Training:
        own = {k: v for k in SHARED_BY_A_LOSS if loss and (v := getattr(loss, k)) is not None}
        lr = own.get("lr", self.training.lr) * backbone.lr_scale
        return self.training.model_copy(update={**own, "lr": float(f"{lr:.12g}")})


def _level(item: Any, shared: dict[str, Any]) -> Any:
    if isinstance(item, Level):
        item = item.model_dump()
    own = {"at": item} if isinstance(item, str) else item
    return {**shared, **own} if isinstance(own, dict) else item


def grids() -> dict[str, Path]:
    """The grids that ship: name → file."""
    folder = Path(str(resources.files("harness") / "grids"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(source: str | Path, folder: Path = Path()) -> Path:
    """The file of a grid: a path from `folder` that exists, or the name of one that ships.

    Raises GridError with near names.
    """
    path = folder / source
    if path.is_file():
        return path
    if (name := str(source).removesuffix(".yaml")) in grids():
        return grids()[name]
    if path.is_dir():
        raise GridError(str(source), ["it is a folder; a grid is a YAML file"])
    raise GridError(str(source), [registry.unknown("grid file, nor grid", str(source), grids())])


def texts(source: str | Path) -> dict[str, str]:
    """What a grid is read from, less the grids that ship: the name of a file → its text.

    The first is `source`, as it is written; the others are those that it includes, named from its folder. Of a file
    that cannot be read as a grid this is all there is: whoever loads it says what is wrong.
    """
    found: dict[str, str] = {}
    _add_texts(found, Path(source), str(source), Path())
    return found


def _add_texts(found: dict[str, str], path: Path, name: str, folder: Path) -> None:
    """Add the file `path`, called `name`, and those that it includes, which lie at paths from `folder`."""
    if name in found or not path.is_file():
        return
    found[name] = path.read_bytes().decode("utf-8-sig", errors="replace")
    content, _ = _parsed(found[name])
    for included in _included(content) if isinstance(content, dict) else ():
        below = os.path.normpath(folder / included)
        _add_texts(found, path.parent / included, below, Path(below).parent)


def _included(content: dict[str, Any]) -> list[str]:
    names = content.get("include")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _not_of_an_including_grid(content: dict[str, Any]) -> list[str]:
    """What a grid says that only those may say which it includes, and what is wrong with the list of those."""
    own, problems = (*OF_AN_INCLUDING_GRID, "include"), []
    others = [key for key in content if key not in own]
    if settings := [key for key in others if key in Grid.model_fields]:
        problems.append(
            f"{', '.join(settings)}: a grid that includes others sets nothing but {', '.join(OF_AN_INCLUDING_GRID)}; "
            "write it in the included grids, or on the command line, which holds for all of them"
        )
    problems += [f"{key}: " + registry.unknown("setting", key, own) for key in others if key not in settings]
    names = content["include"]
    if not isinstance(names, list) or not names or len(_included(content)) < len(names):
        problems.append(f"include: {names!r} is not a list of grids, such as [quick, mine.yaml]")
    return problems


def _apart(parts: Sequence["Grid"]) -> list[str]:
    """What two parts of a grid would run under different settings: one table cannot hold both results."""
    tables: dict[tuple, tuple[str, Any]] = {}
    cells: dict[tuple, tuple[str, Any]] = {}
    found: dict[str, None] = {}
    for part in parts:
        for trial in part.trials():
            repeated = (*trial.cell, trial.seed, trial.fold)
            for known, key, content in ((tables, trial.cell[:2], trial.shared), (cells, repeated, trial.id)):
                first, before = known.setdefault(key, (part.name, content))
                if before != content:
                    place = " with ".join(trial.cell[:2])
                    found[f"include: {first} and {part.name} run {place} under different settings"] = None
    return list(found)


def _content(path: Path) -> dict[str, Any]:
    """The settings that the file of a grid holds, as it writes them. Raises GridError where it holds none."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise GridError(str(path), [f"it cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise GridError(str(path), [f"it is not UTF-8 text: line {line} holds the byte {byte:#x}"]) from None
    content, problems = _parsed(text)
    if not problems and not isinstance(content, dict):
        problems = ["it holds no settings; see the grids that ship for an example"]
    elif not problems and "parts" in content:
        problems = ["parts: no such setting; a grid runs others as its parts with include: [grid, …]"]
    if problems:
        raise GridError(str(path), problems)
    empty = {key for key in SECTIONS if key in content and content[key] is None}
    return {key: value for key, value in content.items() if key not in empty}


def _parsed(text: str) -> tuple[Any, list[str]]:
    """What YAML says, and what is wrong with it."""
    try:
        loader = _Loader(text)
        return loader.get_single_data(), loader.problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(filter(None, (error.context, error.problem)))
        if "\\t" in said:
            said += "; indent with spaces"
        if "expected a single document" in said:
            said = "it holds several documents (---); a grid is one"
        return None, [f"it is not YAML: line {mark.line + 1}, column {mark.column + 1}: {said}"]
    except Exception as error:  # its constructors raise anything on a wrong tag
        return None, [f"it is not YAML: {error}".replace("\n", " ")]


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, 010 is not eight, 1:30 is not ninety, 2020-01-01 is a text.

    `problems` are keys that are written twice in one mapping, of which YAML would take the last.
    """

    def __init__(self, text: str):
        self.problems: list[str] = []
        super().__init__(text)

    def compose_node(self, parent, index):
        node = super().compose_node(parent, index)
        if node.end_mark is None:  # an alias of what is not yet complete
            raise yaml.MarkedYAMLError(problem="an anchor that contains itself", problem_mark=node.start_mark)
        return node

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.ScalarNode] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":  # a mapping may merge several others
                continue
            if (before := first.setdefault(key.value, key)) is not key:
                lines = f"line {before.start_mark.line + 1} and in line {key.start_mark.line + 1}"
                self.problems.append(f"{key.value}: it is written twice, in {lines}")
        return node


_NUMBERS = {
    "int": re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "float": re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?$"
        r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    sign: [(tag, regexp) for tag, regexp in resolvers if tag.rpartition(":")[2] not in (*_NUMBERS, "timestamp")]
    for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, list("-+.0123456789"))


def _brackets(options: dict[str, Any]) -> str:
    return "[" + ",".join(f"{k}={_plain(v)}" for k, v in options.items()) + "]" if options else ""


def _plain(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "none"}.get(value, value)
        if not isinstance(value, float | int) or isinstance(value, bool)
        else f"{value:g}"
    )


def _pairs(where: str, text: str | None) -> dict[str, Any]:
    """The options in the brackets of an arm; GridError names the arm by `where`."""
    found = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, written = part.partition("=")
        value, problems = (None, []) if written.strip() == "none" else _parsed(written)
        if not equals:
            problems = [f"{part!r} is not written key=value"]
        elif key.strip() in found:
            problems = [f"{key.strip()} is written twice"]
        elif isinstance(value, float) and not math.isfinite(value):
            problems = [f"{key.strip()} is {value}; a number must be finite"]
        if problems:
            raise GridError(where, problems)
        found[key.strip()] = value
    return found


def _flat(content: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every dotted key that an override may set."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, f"{prefix}{name}.")
        elif name != "parts":  # which a file includes
            yield f"{prefix}{name}"


def _meant(key: str) -> list[str]:
    """The dotted keys that a key of the command line may stand for, whole or in short."""
    leaves = list(_leaves(Grid))
    return [leaf for leaf in leaves if leaf == key] or [leaf for leaf in leaves if leaf.rpartition(".")[2] == key]


def set_twice(overrides: Iterable[str]) -> list[str]:
    """A sentence for each setting that the command line gives two values, of which one would be dropped."""
    given, problems = {}, []
    for text in overrides:
        key, _, value = text.partition("=")
        setting = ", ".join(_meant(key)) or key
        if given.setdefault(setting, value) != value:
            problems.append(f"--set {text}: {setting} is set to {given[setting]} as well; set it once")
    return problems


def _override(content: dict[str, Any], text: str) -> str | None:
    """Apply one `key=value` to the raw content; a sentence when it cannot be."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        return f"--set {text or repr(text)}: it is written key=value, such as epochs=20"
    if not (matches := _meant(key)):
        leaves = set(_leaves(Grid))
        return f"--set {text}: " + registry.unknown(
            "setting", key, leaves | {leaf.rpartition(".")[2] for leaf in leaves}
        )
    if len(matches) > 1:
        return f"--set {text}: {key} could be {' or '.join(matches)}"
    read, problems = _parsed(value)
    if problems:
        return f"--set {text}: {'; '.join(problems)}"
    *parents, last = matches[0].split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            return None  # whoever checks the file says that it is no section
    content[last] = read
    return None


def _narrow(content: dict[str, Any], only: dict[str, Sequence[str]]) -> list[str]:
    """Keep the named entries of the grid's lists; a sentence for each name that the grid does not list.

    A loss that the grid does not list runs at its defaults: whoever adds one need not write a grid to try it.
    """
    problems = []
    for field, wanted in only.items():
        listed = content.get(field, Grid.model_fields[field].default)
        if not isinstance(listed, list | tuple):
            continue  # whoever checks the file says that it is no list
        names = [str(item.get("name", item.get("at")) if isinstance(item, dict) else item) for item in listed]
        if field == "seeds":
            problems += [f"--seeds {name}: a seed is a whole number" for name in wanted if not name.isdecimal()]
            content[field] = [int(name) for name in wanted if name.isdecimal()] or listed
            continue
        for name in wanted:
            if name not in names and not _is_loss(field, name):
                unknown = registry.unknown(f"entry of the grid's {field}", name, names)
                if not names:
                    unknown = f"the grid lists no {field}{OTHERWISE.get(field, '')}"
                problems.append(f"--{field} {name}: {unknown}")
        content[field] = [item for item, name in zip(listed, names, strict=True) if name in wanted]
        content[field] += [name for name in wanted if name not in names]
    return problems


def _is_loss(field: str, name: str) -> bool:
    return field == "losses" and not _complaint(lambda: registry.loss(name), field)


def _strangers(content: dict[str, Any]) -> list[str]:
    """Names of losses, arms and datasets that do not exist, and hyperparameters they do not have."""
    problems = []
    for choice in _choices(content, "losses"):
        options = choice.get("options")
        options = options if isinstance(options, dict) else {}
        problems += _complaint(lambda c=choice, o=options: Arm.of(c["name"], o), "losses")
    arms = content.get("arms")
    for text in arms if isinstance(arms, list) else ():
        problems += _complaint(lambda t=text: Arm.parse(str(t)), "arms")
    for choice in _choices(content, "datasets"):
        problems += _complaint(
            lambda c=choice: registry.entry("harness.data.datasets", c["name"], "dataset"), "datasets"
        )
    return problems


def _idle(content: dict[str, Any]) -> list[str]:
    """What a level says of itself and would not use: anything of a baseline, a stage anywhere but at features."""
    problems = []
    levels = content.get("levels")
    for level in levels if isinstance(levels, list | tuple) else ():
        at = level.get("at") if isinstance(level, dict) else None
        idle = [key for key, value in level.items() if key != "at"] if at == "baseline" else []
        if at in ("embedding", "input") and level.get("stage") is not None:
            idle = ["stage"]
        problems += [f"levels: {key} says nothing at level {at}; take it away" for key in idle]
    return problems


def _choices(content: dict[str, Any], field: str) -> list[dict[str, Any]]:
    listed = content.get(field)
    choices = [_named(item) for item in listed] if isinstance(listed, list | tuple) else []
    return [c for c in choices if isinstance(c, dict) and isinstance(c.get("name"), str)]


def _complaint(attempt, where: str) -> list[str]:
    try:
        attempt()
    except GridError as error:
        return [f"{where}: {problem}" for problem in error.problems]
    except UserError as error:
        return [f"{where}: {error}"]
    return []


def _sentences(error: ValidationError, model: type[BaseModel] = Grid) -> list[str]:
    """Pydantic's findings in the words of the file: one sentence a setting, whatever the types it may have."""
    found: dict[str, list[str]] = {}  # how a sentence begins → its ends, where a value may be of several types
    items = error.errors()
    shared = [item["loc"][1:] for item in items if item["loc"][:1] == ("metrix",)]
    for item in items:
        loc, kind, value = item["loc"], item["type"], item["input"]
        if (loc[:1] == ("levels",) and loc[2:] in shared) or (kind == "too_short" and value):
            continue  # it follows from a finding of its own: every level takes what `metrix` says
        place, owner = _place(model, loc)
        strange = kind in ("extra_forbidden", "invalid_key")  # the second: a key that is no text, such as 1
        where = "".join(f"{part}." for part in (loc if strange else place))[:-1]
        start = f"{where}: " if where else ""
        choices = re.findall(r"'([^']*)'", item["ctx"]["expected"]) if kind == "literal_error" else []
        if strange:
            found[start + registry.unknown("setting", loc[-1], owner.model_fields.keys() - {"parts"})] = [""]
        elif kind == "missing" and isinstance(loc[-1], str):
            found[f"{start}this setting is needed"] = [""]
        elif kind == "value_error":
            found[f"{start}{item['ctx']['error']}"] = [""]
        elif len(choices) > 1 and isinstance(value, str):
            key = next((part for part in reversed(place) if isinstance(part, str)), "")
            word = {"at": "level", "floors": "floor"}.get(key, key)
            found[start + registry.unknown(word, value, choices)] = [""]
        else:
            wanted = WANTED.get(kind, item["msg"].replace("Input should", "it should"))
            found.setdefault(f"{start}{_shown(value)} does not fit: ", []).append(wanted)
    return [begin + ", or ".join(ends) for begin, ends in found.items()]


def _shown(value: Any) -> str:
    """A value of a file in a sentence, as the file would write it, and not all of a long one."""
    if isinstance(value, bool | None):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _place(
    model: type[BaseModel] | None, loc: Sequence[str | int]
) -> tuple[tuple[str | int, ...], type[BaseModel] | None]:
    """The part of a finding's place that stands in the file, and what is written there where it is settings.

    What follows in `loc` names one type of several, or a key that there is not.
    """
    place: list[str | int] = []
    for part in loc:
        if isinstance(part, str):
            if model is None or part not in model.model_fields:
                break
            model = _model_in(model.model_fields[part].annotation)
        place.append(part)
    return tuple(place), model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings that an annotation holds, be it in a list or beside None; None where it holds none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


WANTED = {  # in the words of a file, where pydantic speaks of Python's types
    "tuple_type": "it should be a list, written [a, b]",
    "model_type": "it should be settings, written key: value",
    "dict_type": "it should be settings, written key: value",
    "string_type": "it should be a text, in quotes where YAML reads something else",
    "bool_type": "it should be true or false",
    "int_type": "it should be a whole number",
    "float_type": "it should be a number",
    "missing": "an entry is missing",
    "string_pattern_mismatch": "it should be letters, digits, '.', '_' and '-', and begin with a letter or digit",
    "too_short": "it should have an entry",
}
OTHERWISE = {
    "arms": ": choose among its losses and levels with --losses and --levels, or run metrix-bench trial --arm"
}
SECTIONS = {name for name, field in Grid.model_fields.items() if _model_in(field.annotation) is field.annotation}
