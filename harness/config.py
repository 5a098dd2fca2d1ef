"""The values of an experiment: the settings of a trial, and the trial itself.

Every setting is declared here once, with its type, default and range. All values are frozen. An unknown setting is
rejected, and the message suggests the nearest valid one.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from harness import registry
from harness.errors import GridError, unknown
from harness.grids import notation
from harness.grids.validation import sentences, shown

FEATURES, UNTRAINED, PIXELS = FLOORS = ("features", "untrained", "pixels")
PIXELS_PX = 64  # to which the floor of pixels averages larger images, which would take gigabytes
SEEDLESS = (FEATURES, PIXELS)  # floors in which nothing is random
METRIX = ("embedding", "feature", "input")  # the levels of Metrix
LEVELS = ("baseline", *METRIX)  # of a grid that lists none
CENTRE_SHARE = 224 / 256  # the usual test crop
THUMBNAIL_PX = 64  # up to this side the test crop is the whole image
At = TypeVar("At", bound=str)
SHARED_BY_A_LOSS = ("lr", "schedule", "step_epochs", "gamma")  # may differ between losses, never within one


class Value(BaseModel):
    """Frozen settings that reject unknown keys, values of the wrong type and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, content: Any) -> Any:
        """Convert lists to tuples, which a file cannot write."""
        if not isinstance(content, dict):
            return content
        return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}

    @functools.cached_property
    def _json(self) -> str:
        """The content as JSON with sorted keys, cached because the trials of a grid share most of their settings."""
        content = self.model_dump(mode="json")
        content = {name: value for name, value in content.items() if name not in LATER or value != LATER[name]}
        return json.dumps(content, sort_keys=True)

    def model_copy(self, **changes: Any) -> Self:
        """Return a copy, with other values where `update` has them."""
        copy = super().model_copy(**changes)
        vars(copy).pop("_json", None)  # pydantic copies cached values
        return copy


def _finite(options: dict[str, Any]) -> dict[str, Any]:
    """Reject NaN and infinity in options; their types are known only to the dataset or the loss."""
    for key, value in _flat(options):
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"{key} is {value}; a number must be finite")
    return options


class Choice(Value):
    """The name of a loss, dataset or network with its options, written `name` or `{name: …, options: {…}}`."""

    name: str
    options: Annotated[dict[str, Any], AfterValidator(_finite)] = {}


def named(value: Any) -> Any:
    """Return a choice in its long form: {"name": value} for a name alone."""
    return {"name": value} if isinstance(value, str) else value


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1)]


class Backbone(Choice):
    """A timm network. `options` go to timm; `stage` is where the feature level mixes (None: the last feature map).

    `lr_scale` multiplies every learning rate of the grid with this network: a transformer needs smaller steps.
    `pretrained` is true for timm's published weights of this name, or a file. `mean` and `std` (of the channels, for
    pixels in [0, 1]) and `interpolation` say how its images were prepared; the defaults are timm's values.
    """

    pretrained: bool | str = False
    mean: tuple[Share, Share, Share] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    stage: str | None = None
    lr_scale: float = Field(default=1.0, gt=0)


class Mixing(Value, Generic[At]):
    """How Metrix mixes, with the defaults of `metrix.Metrix`; subclasses say where, in `at`."""

    at: At
    stage: str | None = None
    pairs: Literal["alternate", "pos-neg", "anc-neg", "pos-pos", "neg-neg"] = "alternate"
    weight: float = Field(default=0.4, ge=0)
    alpha: float = Field(default=2.0, gt=0, le=1000)
    renormalize: bool = True
    lambda_per: Literal["batch", "example"] = "batch"
    hardest: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    max_mixed: int | None = Field(default=None, ge=1)

    def __str__(self) -> str:
        changed = {k: v for k, v in self.model_dump(exclude_defaults=True).items() if k != "at"}
        return self.at + notation.brackets(changed)


class Level(Mixing[Literal["embedding", "feature", "input"]]):
    """Where and how Metrix mixes: the keyword arguments of `metrix.Metrix`, with the same defaults."""

    at: Literal["embedding", "feature", "input"] = "embedding"


class Rival(Value):
    """A level of `metrix.rivals` with its options, which are complete: every default is among them."""

    at: str
    options: dict[str, Any] = {}

    @classmethod
    def of(cls, at: str, options: dict[str, Any]) -> "Rival":
        """Return the rival `at` with `options` completed by its defaults.

        Raise RegisterError if there is no such level, GridError for options that it does not have.
        """
        defaults = registry.level(at).parameters
        if problems := [unknown(f"option of {at}", key, defaults) for key in options if key not in defaults]:
            raise GridError(f"level {at!r}", problems)
        return cls(at=at, options={**defaults, **_finite(options)})

    def __str__(self) -> str:
        defaults = registry.level(self.at).parameters
        return self.at + notation.brackets({k: v for k, v in self.options.items() if v != defaults.get(k)})


class Model(Value):
    """The embedder around the backbone: pooling, a linear head to `dim`, l2-normalisation.

    `backbone` frozen trains only the head, on the pooled features of a pretrained network. They are computed once for
    all trials, in evaluation mode. `hidden` is the width of a hidden layer (ReLU) in the head; none means that the
    head is linear. `norm` frozen keeps the running statistics of BatchNorm in a backbone that trains.
    """

    backbone: Literal["trained", "frozen"] = "trained"
    dim: int = Field(default=512, ge=1, le=2**16)
    hidden: int | None = Field(default=None, ge=1, le=2**16)
    pooling: Literal["avg", "max", "avg+max", "token"] = "avg"
    norm: Literal["train", "frozen"] = "train"


class Images(Value):
    """What the network sees. Training: random resized crop (share of the area) and flip; test: resize, centre crop.

    `path` says where crops are cut from. `cache`: from images that were decoded once to a shorter side of
    `cache_side_px`. `classical`: from the files, which are decoded and transformed one by one every time. Its
    `decoder` is Pillow, or torchvision's on an NVIDIA GPU, which then transforms each batch at once. Their pixels
    differ a little; what the latter cannot decode, such as PNG, Pillow does.
    `cache_side_px` none means 8/7 of `side_px`, such as 256 for 224; up to 64 px, the size of characters and
    thumbnails, it means `side_px`. `flip` auto means yes, unless mirroring changes the class, as with characters.
    `views` is for a frozen backbone: how many views of each image it computes features of. The first is the test
    crop; the others are random crops and flips, of which training draws one of all views in each step.
    """

    path: Literal["cache", "classical"] = "cache"
    decoder: Literal["pillow", "torchvision-gpu"] = "pillow"
    side_px: int = Field(default=224, ge=8, le=4096)
    cache_side_px: int | None = Field(default=None, ge=8, le=8192)
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    flip: bool | Literal["auto"] = "auto"
    views: int = Field(default=1, ge=1, le=1000)

    @property
    def stored_px(self) -> int:
        """The shorter side of a decoded image in pixels: `cache_side_px` or its default."""
        whole = self.side_px <= THUMBNAIL_PX
        return self.cache_side_px or (self.side_px if whole else round(self.side_px / CENTRE_SHARE))

    @property
    def centre_share(self) -> float:
        """The side of the central test crop as a share of the resized image: 224 of 256, or 1 for the whole image."""
        return max(self.side_px / self.stored_px, CENTRE_SHARE)

    @model_validator(mode="after")
    def _check(self):
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale is {list(self.crop_scale)}; expected two increasing numbers in (0, 1]")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio is {list(self.crop_ratio)}; expected two increasing numbers above 0")
        if self.decoder != "pillow" and self.path == "cache":
            raise ValueError(
                f"decoder {self.decoder} is for path classical; images in the cache are decoded by pillow"
            )
        if self.cache_side_px is not None and self.cache_side_px < self.side_px:
            raise ValueError(f"cache_side_px {self.cache_side_px} is smaller than side_px {self.side_px}")
        return self


class Training(Value):
    """How long to train, with which batches and step sizes; equal for all arms of a table, except a loss's lr.

    `compile` network trains the backbone compiled by torch.compile, and cuda_graphs replays it as CUDA graphs too.
    Compiling takes minutes, in the first epoch. Scores are always computed by the plain network.
    """

    epochs: int = Field(default=60, ge=1, le=1_000_000)
    batch_size: int = Field(default=100, ge=2)
    sampler: Literal["balanced", "shuffle"] = "balanced"
    examples_per_class: int = Field(default=5, ge=1)
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["constant", "step", "cosine"] = "step"
    step_epochs: int = Field(default=10, ge=1)
    gamma: float = Field(default=0.1, gt=0, le=1)
    warmup_epochs: int = Field(default=0, ge=0)
    clip_value: float | None = Field(default=10.0, gt=0)
    precision: Literal["float32", "bf16"] = "float32"
    threads: int = Field(default=1, ge=1, le=1024)
    compile: Literal["none", "network", "cuda_graphs"] = "none"

    @model_validator(mode="after")
    def _check(self):
        if self.sampler == "balanced" and self.batch_size % self.examples_per_class:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of examples_per_class {self.examples_per_class}"
            )
        return self


class Resources(Value):
    """The resources of one trial.

    `gpus_per_trial` is auto, a share such as 0.5, or a number of GPUs among which each batch of a trial is divided.
    With auto, as many trials share a GPU as their measured memory allows. A trial that compiles its network gets half
    an hour more than `epoch_timeout_s`.
    """

    cpus_per_trial: int = Field(default=1, ge=1)
    gpus_per_trial: float | Literal["auto"] = "auto"
    retries: int = Field(default=2, ge=0, le=1000)
    epoch_timeout_s: float = Field(default=3600, gt=0)

    @model_validator(mode="after")
    def _check(self):
        gpus = self.gpus_per_trial
        if gpus != "auto" and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
            raise ValueError(f"gpus_per_trial is {gpus:g}; it is auto, a share up to 1, or a whole number of GPUs")
        return self


class Search(Value):
    """The search of protocol `tuned`: the same number of `trials` for every arm, the first with the defaults.

    The search covers the hyperparameters of the loss over the space that its file declares, the learning rate over
    `lr_range` times the grid's, and for Metrix arms `weight` and `alpha`. Of a rival it covers the space that the
    file of the rival declares. A round proposes `round_of` trials.
    `search_seed` is the training seed of all search trials; final seeds must differ from it.
    """

    trials: int = Field(default=8, ge=2, le=10_000)
    round_of: int = Field(default=4, ge=1)
    search_seed: int = Field(default=1000, ge=0)
    lr_range: tuple[float, float] = (0.1, 10.0)
    weight_range: tuple[float, float] = (0.05, 1.0)
    alpha_range: tuple[float, float] = (0.5, 4.0)

    @model_validator(mode="after")
    def _check(self):
        for name in ("lr_range", "weight_range", "alpha_range"):
            low, high = getattr(self, name)
            if not 0 < low < high:
                raise ValueError(f"{name} is {[low, high]}; expected two increasing numbers above 0")
        return self


class Arm(Value):
    """A row of the leaderboard: a loss, plain, with Metrix or with a rival, or a floor, which is not trained.

    It is written `multi_similarity`, `multi_similarity+embedding` or `contrastive[margin=0.3]+feature[stage=layer3]`:
    the brackets contain every hyperparameter that differs from its default. A rival that stands in for its loss may
    have a level of Metrix after it: `contrastive+xbm[size=1024]+embedding`. `contrastive@2x` trains for twice the
    epochs, with all milestones scaled: a baseline with as many forward passes as a variant.
    """

    loss: str
    options: dict[str, Any] = {}
    metrix: Level | None = None
    rival: Rival | None = None
    longer: float = Field(default=1.0, gt=0, le=1000)
    tuned: str | None = None  # the arm as the grid declares it, if a search has chosen its settings

    @classmethod
    def parse(cls, text: str) -> "Arm":
        """Return the arm written as `text`, with the defaults of its loss. Raise GridError if it is wrong."""
        bracket = r"(?:\[([^\]]*)\])?"
        level = rf"(?:\+(\w+){bracket})?"
        match = re.fullmatch(rf"([\w:]+){bracket}{level}{level}(?:@(\d+\.?\d*)x)?", text.strip())
        where = f"arm {text!r}"
        if not match:
            raise GridError(where, ["expected loss, loss+level or loss[key=value]+level[key=value]"])
        loss, options_text, *level_texts, longer = match.groups()
        options, problems = notation.options(options_text)
        levels = []
        for at, level_text in zip(level_texts[::2], level_texts[1::2], strict=True):
            own, more = notation.options(level_text)
            problems += more
            if at not in (None, "baseline"):
                levels.append((at, own))
        if problems:
            raise GridError(where, problems)
        try:
            arm = cls.of(loss, options, *_levels(where, levels))
            return arm if longer is None else cls(**{**dict(arm), "longer": float(longer)})
        except ValidationError as error:
            raise GridError(where, sentences(error, Level if error.title == "Level" else cls)) from None

    @classmethod
    def of(cls, loss: str, options: dict[str, Any], metrix: Level | None = None, rival: Rival | None = None) -> "Arm":
        """Return the arm of a loss, with `options` completed by the defaults (so that the digest covers every value).

        Raise RegisterError for an unknown loss, GridError for options that it does not have.
        """
        if loss in FLOORS:
            if options or metrix or rival:
                raise GridError(f"arm {loss!r}", [f"{loss} is a floor and takes no options and no level"])
            return cls(loss=loss)
        defaults = registry.loss(loss).parameters
        if problems := [unknown(f"parameter of {loss}", key, defaults) for key in options if key not in defaults]:
            raise GridError(f"loss {loss!r}", problems)
        return cls(loss=loss, options={**defaults, **options}, metrix=metrix, rival=rival)

    @property
    def at(self) -> str:
        """The level: baseline, longer (a baseline trained for longer), floor, or one of `registry.levels`.

        Two levels are joined, as in `xbm+embedding`.
        """
        if self.loss in FLOORS:
            return "floor"
        return "+".join(level.at for level in self.levels) or ("baseline" if self.longer == 1 else "longer")

    @property
    def levels(self) -> "tuple[Rival | Level, ...]":
        """What is around the loss, from the inside: a rival, Metrix, both or nothing."""
        return tuple(level for level in (self.rival, self.metrix) if level is not None)

    @property
    def baseline(self) -> str:
        """The label of the same loss without a level."""
        if self.tuned:
            return Arm.parse(self.tuned).baseline
        return Arm(loss=self.loss, options=self.options).label

    @property
    def label(self) -> str:
        """The arm as a grid writes it; for a tuned arm, as the grid declares it before the search."""
        if self.tuned:
            return self.tuned
        defaults = {} if self.loss in FLOORS else registry.loss(self.loss).parameters
        changed = {k: v for k, v in self.options.items() if v != defaults.get(k)}
        levels = "".join(f"+{level}" for level in self.levels)
        return self.loss + notation.brackets(changed) + levels + (f"@{self.longer:g}x" if self.longer != 1 else "")


def _levels(where: str, levels: list[tuple[str, dict[str, Any]]]) -> "tuple[Level | None, Rival | None]":
    """Return the levels of an arm, given as (name, options) from the inside. Raise GridError unless they fit."""
    rivals = [(at, own) for at, own in levels if at not in METRIX]
    metrix = [(at, own) for at, own in levels if at in METRIX]
    rival = Rival.of(*rivals[0]) if rivals else None
    if len(levels) > 1 and not (
        metrix and rival and levels[0] == rivals[0] and registry.level(rival.at).before_metrix
    ):
        first = [name for name in registry.levels() if registry.level(name).before_metrix]
        raise GridError(where, [f"one level at a time; only {' or '.join(first)} may stand before a level of Metrix"])
    return (Level(**{"at": metrix[0][0], **metrix[0][1]}) if metrix else None), rival


def _as_json(value: Any) -> str:
    return value._json if isinstance(value, Value) else json.dumps(value)


def _ks(value: Any) -> Any:
    """Return the K of R@K after checking that they are increasing whole numbers of at least 1."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{shown(value)} is not a list of K for R@K, such as [1, 10]")
    if wrong := [k for k in value if isinstance(k, bool) or not isinstance(k, int) or k < 1]:
        raise ValueError(f"{wrong[0]!r} in {list(value)} is not a whole number of at least 1")
    if (increasing := sorted(set(value))) != list(value):
        raise ValueError(f"{list(value)} is not in increasing order, each K once: write {increasing}")
    return tuple(value)


Ks = Annotated[tuple[int, ...] | None, BeforeValidator(_ks)]


class Trial(Value):
    """One cell of the grid with one seed: everything that decides its result, and nothing else.

    `ks` are the K of R@K that it scores; none means those usual for its dataset. The folder of the data, the device
    and the time are not part of it. Under cross-validation it is one of `folds` trials of its cell and seed: the one
    that validates on the classes of `fold`, counted from 1. With `folds` and no `fold` it stands for all of them
    together, as in tables.
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
    seed: int = Field(default=0, ge=0)
    fold: int | None = Field(default=None, ge=1)
    folds: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _check(self):
        if self.fold is not None and self.fold > (self.folds or 0):
            raise ValueError(f"fold {self.fold} of {self.folds or 'none'}: folds are counted from 1")
        return self

    @property
    def digest(self) -> str:
        """The sha256 of the content in hexadecimal, without `keep` and `analysis`, which change no score."""
        # A later setting with its default is left out, so records from before it existed keep their names.
        values = ((name, getattr(self, name)) for name in _DECISIVE)
        content = [
            f'"{name}": {_as_json(value)}' for name, value in values if name not in LATER or value != LATER[name]
        ]
        return hashlib.sha256(f"{{{', '.join(content)}}}".encode()).hexdigest()

    @property
    def without_seed(self) -> tuple[Any, ...]:
        """The content of the digest without the seed, hashable: equal for trials that differ only in their seeds."""
        values = (getattr(self, name) for name in _DECISIVE if name != "seed")
        return tuple(value._json if isinstance(value, Value) else value for value in values)

    @property
    def id(self) -> str:
        """A readable and unique name, such as "glyphs-test_resnet-contrastive+input-s0-3f9a12"."""
        arm = self.arm.loss + (f"+{self.arm.at}" if self.arm.at not in ("baseline", "floor") else "")
        name = f"{self.dataset.name}-{self.backbone.name}-{arm}-{self.repetition}"
        return re.sub(r"[^\w+.-]", "_", name) + f"-{self.digest[:8]}"

    @property
    def repetition(self) -> str:
        """What distinguishes it within its cell: s0; of a fold s0-f1of4; of all four s0-4folds."""
        if self.folds is None:
            return f"s{self.seed}"
        return f"s{self.seed}-" + (f"f{self.fold}of{self.folds}" if self.fold else f"{self.folds}folds")

    @property
    def seed_and_fold(self) -> str:
        """The same in words: "seed 0", "seed 0 fold 1 of 4"."""
        return f"seed {self.seed}" + (f" fold {self.fold} of {self.folds}" if self.fold else "")

    @property
    def whole(self) -> "Trial":
        """The trial that stands for all folds of this cell and seed; itself if there are none."""
        return self if self.fold is None else self.model_copy(update={"fold": None})

    def each_fold(self) -> "list[Trial]":
        """Return the trials to run: one for each fold, or this one if there are no folds."""
        if self.folds is None or self.fold is not None:
            return [self]
        return [self.model_copy(update={"fold": fold}) for fold in range(1, self.folds + 1)]

    @property
    def schedule(self) -> Training:
        """The training settings of this arm: epochs and milestones times `arm.longer`."""
        times, names = self.arm.longer, ("epochs", "step_epochs", "warmup_epochs")
        scaled = {name: round(getattr(self.training, name) * times) for name in names}
        return self.training.model_copy(update={**scaled, "step_epochs": max(1, scaled["step_epochs"])})

    @property
    def cell(self) -> tuple[str, str, str]:
        """(dataset, backbone, arm), which seeds and folds repeat."""
        return self.dataset.name, self.backbone.name, self.arm.label

    @property
    def shared(self) -> dict[str, Any]:
        """The factors that must be equal within one table of a dataset and a backbone (FAIR-08), flattened."""
        without = {"fold"} if self.folds else {"fold", "folds"}
        content = self.model_dump(mode="json", exclude={"arm", "seed", "keep", "analysis", *without})
        for name in SHARED_BY_A_LOSS:
            content["training"].pop(name)
        return dict(_flat(content))


LATER = {  # settings that older records lack, with the value that those trials had
    **dict.fromkeys(("fold", "folds", "ks", "mean", "std", "interpolation", "hidden", "rival")),
    **{"backbone": "trained", "views": 1, "decoder": "pillow", "compile": "none"},
}
_DECISIVE = tuple(sorted(Trial.model_fields.keys() - {"keep", "analysis"}))  # the content of a trial's digest


def _flat(content: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value
