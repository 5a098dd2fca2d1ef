"""Numbers from other publications, shown next to ours and never mixed with them (FAIR-24).

`published.csv` in this folder has one number per line, in percent. `published.bib` has one entry per source, whose
field `source` matches the lines. Both are package data, so an installed copy has them too.
"""

import csv
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Published:
    """One published row.

    key     the entry in the bibliography; "" if there is none
    short   a short name of the source, for narrow tables
    level   the paper's own word for the level
    values  scores by metric, fractions in [0, 1]
    """

    source: str
    key: str
    short: str
    dataset: str
    backbone: str
    dim: int
    loss: str
    level: str
    values: dict[str, float]

    @property
    def arm(self) -> str:
        """The arm in our notation."""
        return self.loss if self.level == "baseline" else f"{self.loss}+{self.level}"

    def fits(self, place: tuple[str, str], losses: set[str]) -> bool:
        """Return whether the row belongs to a block of (dataset, backbone) with `losses`; brackets are ignored."""
        dataset, backbone = place
        return (
            self.dataset == dataset
            and _plain(self.backbone) == _plain(backbone)
            and self.loss in {loss.partition("[")[0] for loss in losses}
        )


class PublishedError(UserError):
    """A file of published numbers that cannot be read."""


def load(folder: Path = HERE) -> tuple[Published, ...]:
    """Return all published rows, in the order of the file.

    Raises PublishedError with the line that cannot be read, FileNotFoundError if a file is missing.
    """
    path = folder / "published.csv"
    about = _sources(folder)
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.DictReader(file), 2):
            try:
                key = tuple(line[name] for name in ("source", "dataset", "backbone", "dim", "loss", "mix"))
                rows.setdefault(key, {})[line["metric"]] = float(line["value"]) / 100
            except (KeyError, TypeError, ValueError) as error:
                raise PublishedError(f"{path}, line {number}: cannot be read ({error!r})") from None
    return tuple(
        Published(source, *about.get(source, ("", source)), dataset, backbone, int(dim), loss, mix, values)
        for (source, dataset, backbone, dim, loss, mix), values in rows.items()
    )


def entries(folder: Path = HERE) -> dict[str, dict[str, str]]:
    """Return the bibliography, {key: fields}, of entries with a `source`."""
    path = folder / "published.bib"
    fields_by_key = {}
    text = path.read_text(encoding="utf-8")
    for key, body in re.findall(r"^@\w+\{([^,]+),(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", body, re.MULTILINE))
        if "source" in fields:
            fields_by_key[key.strip()] = fields
    return fields_by_key


def key(source: str) -> str:
    """Return the key of a source in the bibliography; "" if there is none."""
    return _sources().get(source, ("", source))[0]


def short(source: str) -> str:
    """Return the short name of a source."""
    return _sources().get(source, ("", source))[1]


@functools.cache
def _sources(folder: Path = HERE) -> dict[str, tuple[str, str]]:
    """Return {source: (key, short name)}."""
    return {entry["source"]: (key, entry.get("short", entry["source"])) for key, entry in entries(folder).items()}


def bibliography(keys: set[str], folder: Path = HERE) -> str:
    """Return the entries of `keys` as a BibTeX file, in alphabetical order, without our own fields."""
    parts = []
    for key, fields in sorted(entries(folder).items()):
        if key in keys:
            lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if name not in ("source", "short")]
            parts.append(f"@misc{{{key},\n" + ",\n".join(lines) + "\n}\n")
    return "\n".join(parts)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
