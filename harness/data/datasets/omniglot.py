"""Handwritten characters of many alphabets (Lake et al. 2015): 20 drawings of each, by 20 people.

`data` is a folder (or one zip) with the official archives, packed or unpacked:
images_background_small1, images_background_small2, images_background, images_evaluation. They contain
`<alphabet>/<character>/<drawing>.png`. The archives overlap; a drawing in several of them counts once.

The test split is half of the classes, in whole alphabets if possible: see `harness.data.splits.held_out`.
Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program induction, Science 2015.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from harness.data.datasets._dataset import Dataset, DatasetError
from harness.data.datasets._decode import decode
from harness.data.datasets._walk import Walk
from harness.data.splits import held_out

NEEDS_DATA = True

NO_DRAWINGS = "files that are not drawings"
COPIES = "copies of a drawing of the same character"
CHARACTER = re.compile(r"character\d+")


def load(data: Path, cache: Path) -> Dataset:
    """Read the drawings below `data`; their files are small (0.3 kB) and stay in memory undecoded.

    Raises DatasetError if there are none, if a zip is damaged, and if two different drawings have the same name.
    """
    walk = Walk(str(data))
    drawings: dict[str, bytes] = {}
    seen: set[tuple[str, bytes]] = set()
    for source, key, content in _drawings(data, walk):
        if drawings.get(key, content) != content:
            raise DatasetError(f"omniglot: two different drawings are named {key}, one of them in {source}")
        identity = (_character(key), hashlib.sha256(content).digest())
        if identity in seen:
            walk.ignored[COPIES].append(f"{Path(source).relative_to(data)}: {key}")
        else:
            seen.add(identity)
            drawings[key] = content
    if not drawings:
        raise DatasetError(
            f"omniglot: no drawings in {data}. Put the official archives there, packed or unpacked "
            "(images_background.zip, images_evaluation.zip, or the two small sets); they contain "
            "<alphabet>/character01/<drawing>.png"
        )
    keys = tuple(sorted(drawings))
    class_names = sorted({_character(key) for key in keys})
    alphabets = tuple(name.partition("/")[0] for name in class_names)
    split_of = np.full(len(class_names), "train", dtype="<U10")
    split_of[held_out(class_names, 0.5, "test-1", alphabets)] = "test"
    labels = np.searchsorted(class_names, [_character(key) for key in keys]).astype(np.int64)
    contents = tuple(drawings[key] for key in keys)
    return Dataset(
        name="omniglot",
        keys=keys,
        labels=labels,
        class_names=tuple(class_names),
        split=split_of[labels],
        read=partial(_read, keys, contents),
        groups=alphabets,
        mirrored=False,
        source_stamp=hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest(),
        passed_over=walk.passed_over,
    )


def _drawings(data: Path, walk: Walk) -> Iterator[tuple[str, str, bytes]]:
    """Yield source, `<alphabet>/<character>/<file>` and bytes of every drawing below `data`."""
    files = walk.files() if data.is_dir() else []
    walk.require_readable("omniglot")
    is_archive = {file: file.lower().endswith(".zip") for file in files}
    for path in [data / file for file in files if is_archive[file]] if data.is_dir() else [data]:
        yield from _packed(path, walk)
    for file in files:
        if (key := _key(f"{data.as_posix()}/{file}")) is not None:
            try:
                yield str(data / file), key, (data / file).read_bytes()
            except OSError as error:
                raise DatasetError(f"omniglot: {data / file}: {error.strerror}") from error
        elif not is_archive[file]:
            walk.ignored[NO_DRAWINGS].append(file)


def _packed(path: Path, walk: Walk) -> Iterator[tuple[str, str, bytes]]:
    """Yield the drawings in an archive, as `_drawings` does."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                if (key := _key(member)) is not None:
                    yield str(path), key, archive.read(member)
                elif not member.endswith("/"):
                    walk.ignored[NO_DRAWINGS].append(f"{path.name}: {member}")
    except OSError as error:
        raise DatasetError(f"omniglot: {path}: {error.strerror}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise DatasetError(f"omniglot: {path} is damaged ({error}); download it again") from error


def _key(path: str) -> str | None:
    """Return the last three parts of a drawing's path; None for any other file."""
    parts = PurePosixPath(path).parts[-3:]
    is_drawing = len(parts) == 3 and CHARACTER.fullmatch(parts[1]) and parts[2].endswith(".png")
    return "/".join(parts) if is_drawing and not parts[2].startswith(".") else None


def _character(key: str) -> str:
    return key.rpartition("/")[0]


def _read(keys: tuple[str, ...], contents: tuple[bytes, ...], index: int) -> Image.Image:
    return decode(io.BytesIO(contents[index]), keys[index])
