"""Numbers from other publications, shown next to ours and never mixed with them (FAIR-24).

`published.csv` in this folder has one number per line, in percent. `published.bib` has one entry per source, whose
field `source` matches the lines. Entries with the same title are of one publication. Both files are package data, so
an installed copy has them too.

A loss has our name only if it is our loss. Otherwise the file calls it `triplet (theirs)`, which equals no row here:
`proxy_nca (theirs)` keeps the own proxy in its denominator, as `proxy_nca_pp` with temperature 1/12 does. What is not
known is empty: the dimension, the side of the images (`side_px`), the batch (`batch_size`), a `note` on the protocol.
"""

import csv
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Published:
    """One published row.

    key     the entry in the bibliography; "" if there is none
    short   a short name of the source, for narrow tables
    dim     None if unknown; such a row fits no block
    level   the paper's own word for the level, written as we write ours: `i_mix` for `i-mix`
    about   what is known of images, batch and protocol: `224 px, batches of 100`; "" if nothing is
    values  scores by metric, fractions in [0, 1]
    """

    source: str
    key: str
    short: str
    dataset: str
    backbone: str
    dim: int | None
    loss: str
    level: str
    about: str
    values: dict[str, float]

    @property
    def arm(self) -> str:
        """The arm in our notation."""
        return self.loss if self.level == "baseline" else f"{self.loss}+{self.level}"

    def fits(self, place: tuple[str, str], dim: int | None, losses: set[str]) -> bool:
        """Return whether the row belongs to a block of (dataset, backbone) with `dim` dimensions and `losses`.

        Brackets of losses and the tag of a backbone's weights (resnet50.tv_in1k) are ignored.
        """
        dataset, backbone = place
        return (
            self.dataset == dataset
            and plain(self.backbone) == plain(backbone.partition(".")[0])
            and self.dim is not None
            and self.dim == dim
            and self.loss in {loss.partition("[")[0] for loss in losses}
        )


class PublishedError(UserError):
    """A file of published numbers that cannot be read."""


def load(folder: Path = HERE) -> tuple[Published, ...]:
    """Return all published rows, in the order of the file.

    Raises PublishedError with the line that cannot be read, FileNotFoundError if a file is missing.
    """
    path = folder / "published.csv"
    rows: dict[tuple[Any, ...], dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.DictReader(file), 2):
            try:
                dim = int(line["dim"]) if line["dim"] else None
                key = (*(line[name] for name in ("source", "dataset", "backbone")), dim, line["loss"])
                key += (line["mix"].replace("-", "_"), _about(line))
                rows.setdefault(key, {})[line["metric"]] = float(line["value"]) / 100
            except (KeyError, TypeError, ValueError) as error:
                raise PublishedError(f"{path}, line {number}: cannot be read ({error!r})") from None
    published = []
    for (source, dataset, backbone, dim, loss, level, about), values in rows.items():
        entry = _entry(source, folder)
        names = (source, entry["key"], entry["short"], dataset, backbone)
        published.append(Published(*names, dim, loss, level, about, values))
    return tuple(published)


def _about(line: dict[str, str]) -> str:
    side, batch = line.get("side_px"), line.get("batch_size")
    known = (f"{side} px" if side else "", f"batches of {batch}" if batch else "", line.get("note"))
    return ", ".join(part for part in known if part)


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
    return _entry(source)["key"]


def short(source: str) -> str:
    """Return the short name of a source."""
    return _entry(source)["short"]


def publication(source: str) -> str:
    """Return the title of the publication that a source belongs to, for example a README or slides."""
    return _entry(source)["title"]


def _entry(source: str, folder: Path = HERE) -> dict[str, str]:
    """Return the entry of a source with its key; one without a key if there is none."""
    return _sources(folder).get(source, {"key": "", "short": source, "title": source})


@functools.cache
def _sources(folder: Path) -> dict[str, dict[str, str]]:
    """Return {source: entry}."""
    return {
        entry["source"]: {"short": entry["source"], **entry, "key": key} for key, entry in entries(folder).items()
    }


def bibliography(keys: set[str], folder: Path = HERE) -> str:
    """Return the entries of `keys` as a BibTeX file, in alphabetical order, without our own fields."""
    parts = []
    for key, fields in sorted(entries(folder).items()):
        if key in keys:
            lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if name not in ("source", "short")]
            parts.append(f"@misc{{{key},\n" + ",\n".join(lines) + "\n}\n")
    return "\n".join(parts)


def plain(name: str) -> str:
    """Return a name without what spellings differ in: `resnet50` for `ResNet-50`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
