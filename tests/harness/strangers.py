"""Folders and manifests as strangers have them: odd names, kinds of files, links, permissions, encodings.

`trees` and `manifests` are hypothesis strategies; `plant` puts a tree into a folder, `lying` lists what lies there.
Every run of the tests tries the same examples; with `METRIX_BENCH_STRANGERS=20` in the environment it tries twenty
times as many, which are others each time.
"""

import io
import os
import stat
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

TIMES = int(os.environ.get("METRIX_BENCH_STRANGERS", "0"))
CLASSES = tuple(f"c{number:02d}" for number in range(12))
IMAGES = 3  # of a class
FORMS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "webp": "WEBP", "ppm": "PPM"}

NAMES = st.one_of(
    st.sampled_from([os.fsencode(name) for name in CLASSES]),
    st.sampled_from([b"@eaDir", b"Thumbs.db", b"._0.png", b".cache", b"__MACOSX", b"lost+found", b"desktop.ini"]),
    st.sampled_from([b"train", b"Test", b"VAL", b"caf\xe9", b"-rf", b"0.png", b"photo", b"a b", b"notes.txt"]),
    st.sampled_from(["C00", "c01 ", "c02\u200b", "caf\u00e9", "cafe\u0301", "\u4e2d\u6587", "a\nb"]).map(os.fsencode),
    st.binary(min_size=1, max_size=6).filter(lambda name: not set(name) & set(b"/\0") and name not in (b".", b"..")),
)
ENDINGS = st.sampled_from([b"", b".png", b".JPG", b".jfif", b".gif", b".txt", b".dat", b".png.part", b".tif"])
FILES = ("image", "black", "text", "empty", "cut", "copy", "closed file", "pipe")
KINDS = st.sampled_from((*FILES, "image", "folder", "closed folder", "link", "link", "hard link"))


def tried(examples: int) -> settings:
    """The settings of a property that is tried on so many examples."""
    return settings(
        max_examples=examples * (TIMES or 1),
        derandomize=not TIMES,
        deadline=None,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType] (its metaclass hides its members)
    )


class Thing(NamedTuple):
    """Something to plant: what, where, under which name, and what it leads to or holds."""

    kind: str
    above: tuple[bytes, ...]
    name: bytes
    target: bytes
    form: str
    seed: int


def things() -> st.SearchStrategy[Thing]:
    """One thing somewhere in the tree, mostly in a class folder."""
    above = st.one_of(
        st.just(()),
        st.sampled_from(CLASSES).map(lambda name: (os.fsencode(name),)),
        st.lists(NAMES, max_size=3).map(tuple),
    )
    links = (b".", b"..", b"../..", b"nowhere", b"../c03", b"../c04/0.png", b"0.png", b"/dev/null")
    targets = st.one_of(st.sampled_from(links), NAMES)
    named = st.builds(lambda name, ending: name + ending, NAMES, ENDINGS)
    return st.builds(Thing, KINDS, above, named, targets, st.sampled_from(sorted(FORMS)), st.integers(0, 5))


def trees(most: int = 8) -> st.SearchStrategy[list[Thing]]:
    """What is planted beside twelve classes of three images each."""
    return st.lists(things(), max_size=most)


@cache
def picture(form: str, seed: int) -> bytes:
    """A small image file of one colour; a negative seed is black."""
    file = io.BytesIO()
    colours = [((seed + 1) * (place + 3) * 37) % 256 if seed >= 0 else 0 for place in range(3)]
    Image.new("RGB", (9 + seed % 3, 8), tuple(colours)).save(file, form)
    return file.getvalue()


def plant(folder: Path, tree: list[Thing]) -> None:
    """Write the classes and the tree into a new folder; things that have no room there are left out."""
    folder.mkdir(parents=True)
    for c, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for i in range(IMAGES):
            (folder / name / f"{i}.png").write_bytes(picture("PNG", 10 + IMAGES * c + i))
    closed = []
    for thing in tree:
        parent = os.path.join(os.fsencode(folder), *thing.above)
        path = os.path.join(parent, thing.name)
        try:
            os.makedirs(parent, exist_ok=True)
            if not os.path.lexists(path):
                _put(thing, path)
                if thing.kind.startswith("closed"):
                    closed.append(path)
        except OSError:
            continue  # a name that is too long, a parent that is a file, a target that is not there
    for path in closed:
        os.chmod(path, 0)


def _put(thing: Thing, path: bytes) -> None:
    content = picture(FORMS[thing.form], thing.seed)
    if thing.kind == "link":
        os.symlink(thing.target, path)
    elif thing.kind == "hard link":
        os.link(os.path.join(os.path.dirname(path), thing.target), path)
    elif thing.kind == "pipe":
        os.mkfifo(path)
    elif thing.kind in ("folder", "closed folder"):
        os.mkdir(path)
        if thing.seed:
            Path(os.fsdecode(path), "inner.png").write_bytes(content)
    else:
        held = {
            "black": picture(FORMS[thing.form], -1 - thing.seed),
            "text": b"BM no image",
            "empty": b"",
            "cut": content[: len(content) // 2],
            "copy": picture("PNG", 10),
        }
        Path(os.fsdecode(path)).write_bytes(held.get(thing.kind, content))


def reopen(folder: Path) -> None:
    """Give back all permissions, so that the folder can be removed."""
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, stat.S_IRWXU)


def lying(folder: Path) -> list[str]:
    """Every file, link to a file, pipe and empty folder below a folder, relative to it; no link is followed."""
    found = []
    for parent, folders, files in os.walk(folder):
        relative = os.path.relpath(parent, folder)
        names = [name for name in folders + files if name in files or not os.listdir(os.path.join(parent, name))]
        found += [os.path.normpath(os.path.join(relative, name)) for name in names]
    return [path for path in found if not os.path.isdir(folder / path) or not (folder / path).is_symlink()]


class Row(NamedTuple):
    """A line of a manifest."""

    path: str
    label: str
    split: str
    role: str


def manifests() -> st.SearchStrategy[tuple[list[Row], str, str]]:
    """Lines beside those of twelve classes, and the encoding and the line end of the file."""
    known_paths = ("c00/0.png", "c00/./1.png", "../x.png", "/etc/passwd", "", "c00", "c00/9.png", "c00\\0.png")
    paths = st.one_of(st.sampled_from(known_paths), st.text(max_size=8))
    known_labels = ("c00", "C00", "c01 ", "c02\u200b", "\ufeffc03", "e\u0301", "\u00e9")
    labels = st.one_of(st.sampled_from(known_labels), st.text(max_size=5))
    splits = st.sampled_from(["train", "test", "Train", "validation ", ""])
    rows = st.builds(Row, paths, labels, splits, st.sampled_from(["", "query"]))
    encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
    return st.tuples(st.lists(rows, max_size=4), encodings, st.sampled_from(["\n", "\r\n", "\r"]))


def manifest(rows: list[Row], encoding: str, line_end: str) -> bytes:
    """The file: the classes, of which the second half is the test split, and these lines; blanks stand for what the
    encoding lacks."""
    listed = [
        Row(f"{name}/{i}.png", name, "train" if c < len(CLASSES) // 2 else "test", "")
        for c, name in enumerate(CLASSES)
        for i in range(IMAGES)
    ]
    lines = ["path,label,split,role", *(",".join(map(_quoted, row)) for row in [*listed, *rows])]
    return line_end.join(lines).encode(encoding, "replace")


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if set(value) & set('",\r\n') else value
