"""The look of a level: its colour, shape and dashes, the same in every figure, on paper and on the page.

A level looks as its place in the register says, so that a new one needs no entry here. Colours of the levels of
Metrix are from the colour-blind safe palette of Okabe and Ito; shapes repeat the distinction. Two levels in one arm,
such as `xbm+embedding`, have the colour of the first and the shape of the second.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from harness import registry
from harness.config import METRIX


@dataclass(frozen=True)
class Look:
    """Colours on a light and on a dark page, the name of a shape, and an SVG dash pattern ("" for a full line)."""

    colour: str
    dark: str
    shape: str
    dash: str


PLAIN = {
    "baseline": Look("#5F636C", "#A2A6AE", "diamond", ""),
    "embedding": Look("#0072B2", "#56B4E9", "circle", "7 3"),
    "feature": Look("#D55E00", "#F0995A", "square", "2 3"),
    "input": Look("#009E73", "#4FC9A4", "triangle", "9 3 2 3"),
    "longer": Look("#9B6A9E", "#CC9ED0", "triangle-down", "1 4"),
    "floor": Look("#B0B3BA", "#6A6E77", "cross", ""),
}
RIVALS = (  # in turn
    Look("#CC79A7", "#E3A6C6", "plus", "5 2 1 2"),
    Look("#B8860B", "#E6BE5A", "star", "8 2 1 2 1 2"),
    Look("#4B3F9E", "#A79BEA", "triangle-left", "3 3"),
    Look("#7A3E1D", "#D39A77", "pentagon", "12 4"),
    Look("#2A7F8E", "#6CC4D2", "triangle-right", "4 1"),
    Look("#8FA000", "#C6D640", "hexagon", "6 2 3 2"),
    Look("#B0122F", "#F27C92", "x", "1 2"),
)
MARKERS = {  # of matplotlib
    **{"diamond": "D", "circle": "o", "square": "s", "triangle": "^", "triangle-down": "v", "cross": "+"},
    **{
        "plus": "P",
        "star": "*",
        "triangle-left": "<",
        "pentagon": "p",
        "triangle-right": ">",
        "hexagon": "h",
        "x": "X",
    },
}


def look(level: str) -> Look:
    """Return the look of a level; one that is not registered looks like a baseline."""
    first, _, last = level.partition("+")
    if last:
        return Look(**{**vars(look(first)), "shape": look(last).shape})
    rivals = [name for name in registry.levels() if name not in METRIX]
    return RIVALS[rivals.index(level) % len(RIVALS)] if level in rivals else PLAIN.get(level, PLAIN["baseline"])


def marker(level: str) -> tuple[str, str]:
    """Return the colour and the marker of a level for matplotlib."""
    return look(level).colour, MARKERS[look(level).shape]


def in_order(levels: Iterable[str]) -> list[str]:
    """Return different levels in the order of tables: the baseline, registered levels, longer, floors."""
    last = ("longer", "floor")
    return sorted(
        {*levels}, key=lambda level: (level in last and last.index(level), registry.level_order(level), level)
    )


def css(levels: Iterable[str]) -> str:
    """Return the colours of levels as CSS variables `--level-0`, …, for both themes."""
    looks = [look(level) for level in levels]
    light, dark = (
        " ".join(f"--level-{n}: {colour};" for n, colour in enumerate(colours))
        for colours in ([one.colour for one in looks], [one.dark for one in looks])
    )
    return (
        f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f":root[data-theme=dark] {{ {dark} }}"
    )
