"""Editions of the evaluator: which versions of its code compute the same numbers.

A record stores the digest of the evaluator that scored it. The digest changes with every byte of the code, comments
included, so it does not say whether two records are comparable. `EDITIONS` says it: digests of one edition compute
the same numbers, and their records may share a table. An unknown digest is an edition of its own.

After a change of `retrieval.py`, `symmetry.py` or `metrics/`, compare the scores of the old and the new code, bit for
bit. If they are equal, add the new digest to the last edition. If they differ, add an edition and an entry in
CHANGELOG.md.
The digest covers the bytes of the files, since a digest of the syntax tree would depend on the version of Python.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edition:
    """One set of numbers: its name, what changed with it, and the digests of the code that computes it."""

    name: str
    change: str
    digests: tuple[str, ...]


EDITIONS = (  # newest last
    Edition(
        "edition 1",
        "Exact cosine retrieval. Other classes come first among ties; queries without a positive are left out.",
        (  # newest last
            "d587a8f7939debe7b308bd9d48146d85f5464107eb66607c635434344149830b",
            "214c1a0d7f5e2123426fbf67adfb38fe19b99fa5835397ad3568231d74ddbf1f",
            "51284319677b5788c3312512d13ffb1b8700efeb7c3690a4bdabf70a7df35fc9",
            "8e77d66885315293bc36236a7f41865be1104eaae784c1708c2e72bb929ce2dc",
            "8af54a67a8fd983f3dce096062333a6864f5030801abe5207143ef4f34d2c609",
            "3cbe495db3a4794346b104f3ca0844f46a35c8774efb8626bba662f80facd697",
            "f55cc87fcdd212af461298592dfe33839665f8409903d213233f2235b5474ff1",
            "95da0384efdb7e4d63895dc7e5e12d37c4178afa0828e46cac85939d7bebd564",
            "cdf31ed4d9ea488d47f6afa853035ac93d60873611f17a58cbd4f0d5d8f26db5",
            "b6fdedad956fcae5c7a593cecac316dd0b69af9b2cf20206f72397dba9b55116",
            "e48f4267e936284c0a1216c346f47960f1a0fde6347e52795d37c9ad0b0a90a7",
        ),
    ),
)


def evaluator_digest() -> str:
    """Return the sha256 over the sources of `retrieval.py`, `symmetry.py` and every metric, with their names."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in (here / "retrieval.py", here / "symmetry.py", *sorted((here / "metrics").glob("*.py"))):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def edition_of(digest: str | None) -> str | None:
    """Return the name of the edition that a digest belongs to; an unknown digest, or None, is returned as it is."""
    return next((edition.name for edition in EDITIONS if digest in edition.digests), digest)
