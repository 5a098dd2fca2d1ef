"""Grids as strangers write them: valid ones, and the same with mistakes in keys, values, structure and encoding."""

import copy
from typing import Any

import yaml
from hypothesis import strategies as st

import baselines

ODD_NUMBERS = (0, -1, 1, 3, 10**30, -0.5, 0.5, 1e-320, 1e308, float("nan"), float("inf"), True)
ODD_TEXTS = (
    "",
    " ",
    "none",
    "nan",
    "1e400",
    "a b",
    "caf\u00e9",
    "x: y",
    "[",
    "\u200b",
    "../../x",
    "contrastve",
    "fair",
)
ODD_OTHERS = (None, [], {}, [[]], [None], {"name": None}, {"name": []}, [1, 2], [{"at": "feature"}], {1: 2}, b"\xff")
ODD = st.sampled_from((*ODD_NUMBERS, *ODD_TEXTS, *ODD_OTHERS)) | st.text(max_size=4) | st.integers()
KEYS = st.sampled_from(
    ("epoch", "trainig", "option", "parts", "include", "at", "name", "options", "seed", "stage", "lr", "<<", "1", "")
)

DATASETS = st.sampled_from(["glyphs", {"name": "glyphs", "options": {"classes": 24}}])
BACKBONES = st.fixed_dictionaries(
    {"name": st.just("test_resnet")},
    optional={
        "stage": st.sampled_from([None, "layer3", "layer4"]),
        "lr_scale": st.sampled_from([0.1, 1, 2.5]),
        "mean": st.sampled_from([[0.5, 0.5, 0.4], [0.0, 0.0, 0.0]]),
        "std": st.just([0.5, 0.5, 0.4]),
        "interpolation": st.sampled_from(["bilinear", "bicubic"]),
    },
)
LOSSES = st.one_of(
    st.sampled_from(baselines.names()),
    st.fixed_dictionaries(
        {"name": st.just("contrastive")},
        optional={
            "options": st.just({"margin": 0.4}),
            "lr": st.sampled_from([1e-3, 2e-4]),
            "schedule": st.sampled_from(["constant", "cosine"]),
            "step_epochs": st.integers(1, 3),
            "gamma": st.sampled_from([0.1, 0.5]),
        },
    ),
)
SETTINGS = {
    "weight": st.sampled_from([0, 0.2, 1]),
    "alpha": st.sampled_from([0.5, 2.0]),
    "pairs": st.sampled_from(["alternate", "pos-neg", "anc-neg"]),
    "lambda_per": st.sampled_from(["batch", "example"]),
}
LEVELS = st.one_of(
    st.sampled_from(["baseline", "embedding", "feature", "input"]),
    st.fixed_dictionaries(
        {"at": st.sampled_from(["baseline", "embedding", "feature", "input"])},
        optional={
            **SETTINGS,
            "max_mixed": st.just(3),
            "stage": st.sampled_from(["layer2", "layer3"]),
            "hardest": st.sampled_from([2, "all"]),
        },
    ),
)
ARMS = st.sampled_from(
    (
        *("contrastive", "contrastive+embedding", "contrastive[margin=0.3]+input[weight=0.2]", "triplet@2x"),
        *("contrastive+input[stage=layer3]", "margin+feature", "contrastive[margin=-1]", "arcface[scale=0]"),
        *("contrastive@0.1x", "soft_triple[centres=3]", "contrastive+input[hardest=5]"),
        *("contrastive+feature[hardest=all]", "nca+input[hardest=all]"),
    )
)


def _name(choice: str | dict[str, Any]) -> str:
    return choice if isinstance(choice, str) else choice["name"]


def contents() -> st.SearchStrategy[dict[str, Any]]:
    """What a valid grid may write; some of it contradicts the rest."""
    return st.fixed_dictionaries(
        {
            "name": st.sampled_from(["small", "A-1.b", "x_y"]),
            "datasets": st.lists(DATASETS, min_size=1, max_size=1),
            "backbones": st.lists(BACKBONES, min_size=1, max_size=1),
            "model": st.fixed_dictionaries(
                {"dim": st.sampled_from([1, 8])},
                optional={
                    "pooling": st.sampled_from(["avg", "max", "avg+max", "token"]),
                    "norm": st.sampled_from(["train", "frozen"]),
                },
            ),
            "images": st.fixed_dictionaries(
                {"side_px": st.sampled_from([8, 16])},
                optional={
                    "path": st.sampled_from(["cache", "classical"]),
                    "cache_side_px": st.sampled_from([16, 20]),
                    "crop_scale": st.sampled_from([[0.5, 1], [1e-300, 1e-300]]),
                    "crop_ratio": st.sampled_from([[1, 1], [1e-300, 1e300]]),
                    "flip": st.sampled_from([True, False, "auto"]),
                },
            ),
            "training": st.fixed_dictionaries(
                {
                    "epochs": st.sampled_from([1, 1, 2]),
                    "batch_size": st.sampled_from([8, 12]),
                    "examples_per_class": st.sampled_from([2, 4]),
                    "lr": st.sampled_from([1e-3, 1e-2, 1, 1e30, 1e-300]),
                },
                optional={
                    "sampler": st.sampled_from(["balanced", "shuffle"]),
                    "weight_decay": st.sampled_from([0, 1e-4, 1e30]),
                    "optimizer": st.sampled_from(["adamw", "adam"]),
                    "precision": st.sampled_from(["float32", "bf16"]),
                    "threads": st.sampled_from([1, 2]),
                    "schedule": st.sampled_from(["constant", "step", "cosine"]),
                    "warmup_epochs": st.integers(0, 4),
                    "clip_value": st.sampled_from([None, 1, 1e-300]),
                },
            ),
            "losses": st.lists(LOSSES, min_size=1, max_size=2, unique_by=_name),
            "levels": st.lists(LEVELS, min_size=1, max_size=3, unique_by=str),
            "floors": st.sampled_from([[], [], ["untrained"], ["untrained", "pixels"]]),
        },
        optional={
            "arms": st.lists(ARMS, max_size=2, unique=True),
            "seeds": st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True),
            "metrix": st.fixed_dictionaries({}, optional=SETTINGS),
            "protocol": st.sampled_from(["fair", "paper", "tuned"]),
            "folds": st.sampled_from([None, 2, 3]),
            "ks": st.sampled_from([None, [1], [1, 10], [1, 1000]]),
            "keep": st.sampled_from(["weights", "embeddings", "none"]),
            "analysis": st.booleans(),
            "compute_matched": st.booleans(),
        },
    )


@st.composite
def mistaken(draw) -> bytes:
    """The file of a grid with up to three mistakes."""
    content = draw(contents())
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
        content = draw(_changed(content))
    try:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:  # what YAML cannot write
        text = repr(content)
    lines = text.splitlines(keepends=True)
    if draw(st.sampled_from([False, False, True])):
        place = draw(st.integers(0, len(lines)))
        more = st.sampled_from(
            [*lines, "---\n", "\t- x\n", "a: &a [*a]\n", "? [1]\n: 2\n", "%YAML 9\n", "!!set {a}\n"]
        )
        more |= st.sampled_from(
            ["about: !!python/name:os.system x\n", "about: !!binary x\n", "about: !!int x\n", "{\n"]
        )
        lines.insert(place, draw(more | st.text(max_size=6)))
    encoding = draw(st.sampled_from(["utf-8"] * 9 + ["utf-8-sig", "utf-16", "latin-1"]))
    return "".join(lines).encode(encoding, "replace")


@st.composite
def _changed(draw, content: dict[str, Any]) -> dict[str, Any]:
    """The content with one thing in it that is another, gone, under another key, or one more."""
    content = copy.deepcopy(content)
    place: Any = content
    while isinstance(place, dict | list) and place:
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        what = draw(st.sampled_from(["another", "another", "gone", "key", "more"]))
        if what == "another":
            place[key] = draw(ODD)
        elif what == "gone":
            del place[key]
        elif isinstance(place, list):
            place.append(draw(ODD | st.just(place[key])))
        elif what == "key":
            place[draw(KEYS | st.just(f"{key}s") | st.just(str(key)[1:]))] = place.pop(key)
        else:
            place[draw(KEYS)] = draw(ODD)
        break
    return content


def overrides() -> st.SearchStrategy[list[str]]:
    """What people write after --set."""
    keys = st.sampled_from(
        (
            *(
                "epochs",
                "training.epochs",
                "training.epoch",
                "lr",
                "seeds",
                "levels",
                "training",
                "metrix.weight",
                "x",
            ),
            *("datasets", "backbones", "losses", "arms", "options", "name", "images.side_px", "ks", "folds", "=", ""),
            "parts",
        )
    )
    values = st.sampled_from(("1", "-1", "nan", "none", "null", "[", "[1]", "{a: 1}", "{}", "'", "1e999", "a,b", "="))
    pairs = st.builds("{}={}".format, keys, values | st.text(max_size=4))
    return st.just([]) | st.lists(pairs | st.text(max_size=4), max_size=2)


def narrowings() -> st.SearchStrategy[dict[str, list[str]]]:
    """What people write after --losses, --levels, --seeds and the like."""
    words = st.sampled_from(
        ["contrastive", "contrastve", "glyphs", "feature", "test_resnet", "0", "-1", "\u00b2", "", " "]
    )
    fields: list[str] = ["losses", "levels", "backbones", "datasets", "arms", "seeds"]
    lists = st.lists(words | st.text(max_size=3), min_size=1, max_size=2)
    return st.just({}) | st.dictionaries(st.sampled_from(fields), lists, max_size=1)
