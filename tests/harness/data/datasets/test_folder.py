"""One folder per class."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.data import datasets, doctor
from harness.data.datasets import DatasetError
from harness.data.datasets._walk import Walk
from harness.data.splits import hash_order
from tests.harness.data.datasets.sources.folder import image, write


def test_classes_are_split_by_hash(tmp_path):
    dataset = datasets.load("folder", write(tmp_path), test_share=0.5)
    assert len(dataset) == 24
    assert dataset.keys[0] == "ant/1.png"
    first = {dataset.class_names[c] for c in hash_order(dataset.class_names, "test-1")[:4]}
    assert {dataset.class_names[c] for c in dataset.labels[dataset.split == "test"]} == first
    assert dataset.mirrored
    assert not datasets.load("folder", tmp_path, mirrored=False).mirrored


def test_split_folders_are_kept_and_images_may_be_nested(tmp_path):
    for path in (
        "train/a/1.png",
        "train/a/x/2.png",
        "train/b/1.png",
        "validation/e/1.png",
        "validation/e/2.png",
        "validation/f/1.png",
    ):
        image(tmp_path / path)
    for path in ("test/c/1.png", "test/c/2.JPG", "test/d/1.png"):
        image(tmp_path / path)
    dataset = datasets.load("folder", tmp_path)
    found = dict(zip(dataset.keys, dataset.split.tolist(), strict=True))
    assert len(found) == 9
    assert found["train/a/x/2.png"] == "train"
    assert found["test/c/2.JPG"] == "test"
    assert found["validation/e/1.png"] == "validation"
    assert dataset.class_names == ("a", "b", "c", "d", "e", "f")


def test_a_class_in_both_splits_is_rejected(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            image(tmp_path / split / name / "1.png")
            image(tmp_path / split / name / "2.png")
    with pytest.raises(DatasetError, match=r"2 classes in both train and test \(a, b\)"):
        datasets.load("folder", tmp_path)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a.png", "b.png"], "no class folders with images"),
        (["a/1.png", "b/1.png", "c/1.png", "d/1.png"], "every class in train has one image"),
        (["train/a/1.png"], "contains train/; provide both train/ and test/, or neither"),
        (["train/a/1.png", "test/b/1.png", "tset/c/1.png"], "but also tset: move these away"),
    ],
)
def test_rejected_layouts(tmp_path, paths, message):
    for path in paths:
        image(tmp_path / path)
    with pytest.raises(DatasetError, match=message):
        datasets.load("folder", tmp_path)


def test_a_file_and_an_impossible_share_are_rejected(tmp_path):
    with pytest.raises(DatasetError, match="is a file; name the folder"):
        datasets.load("folder", __file__)
    with pytest.raises(ValueError, match=r"share = 1.5"):
        datasets.load("folder", write(tmp_path), test_share=1.5)


def test_a_replaced_image_changes_the_stamp_but_not_the_index(tmp_path):
    before = datasets.load("folder", write(tmp_path))
    image(tmp_path / "ant/1.png", side_px=40)
    after = datasets.load("folder", tmp_path)
    assert before.index_fingerprint == after.index_fingerprint
    assert before.source_stamp != after.source_stamp


def passed(dataset):
    return {one.reason: (one.count, one.examples) for one in dataset.passed_over}


def test_every_file_is_indexed_or_counted_as_ignored(tmp_path):
    data = write(tmp_path / "data")
    (data / "ant" / "2.png").rename(data / "ant" / "2.jfif")
    (data / "ant" / "3.png").rename(data / "ant" / "3")
    (tmp_path / "more").mkdir()
    (data / "bee" / "2.png").rename(tmp_path / "more" / "2.png")
    (data / "bee" / "more").symlink_to(tmp_path / "more")
    (data / "bee" / "back").symlink_to(data)
    for path in ("ant/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", ".cache/1.png", "cat/.hidden.png", "__MACOSX/ant/1.png"):
        image(data / path)
    (data / "Thumbs.db").write_bytes(b"no image")
    (data / "readme").write_text("BMW and others")
    (data / "cat" / "readme").write_text("BMW and others")
    (data / "nothing").mkdir()
    (data / "words").mkdir()
    (data / "words" / "a.txt").touch()
    os.link(data / "cat" / "1.png", data / "cat" / "again.png")
    os.mkfifo(data / "cat" / "pipe.png")
    dataset = datasets.load("folder", data)
    assert len(dataset) == 24
    assert {"ant/2.jfif", "ant/3", "bee/more/2.png"} <= set(dataset.keys)
    assert passed(dataset) == {
        "class folders without images": (1, ("words",)),
        "empty folders": (1, ("nothing",)),
        "files and folders of an operating system or a storage device": (
            11,
            ("Thumbs.db", "__MACOSX", "ant/._1.png", "ant/@eaDir", "bee/._1.png"),
        ),
        "files outside class folders": (1, ("readme",)),
        "files that are not images": (
            10,
            ("ant/notes.txt", "bee/notes.txt", "cat/notes.txt", "cat/readme", "dog/notes.txt"),
        ),
        "additional paths to a file that is indexed already": (1, ("cat/again.png",)),
        "hidden files and folders": (2, (".cache", "cat/.hidden.png")),
        "links to a folder that is indexed already": (1, ("bee/back",)),
        "pipes, sockets and devices": (1, ("cat/pipe.png",)),
    }
    messages = [finding.sentence for finding in doctor.examine("folder", data).findings]
    assert "folder: ignored 1 class folders without images (words)" in messages
    assert len(messages) == 9


CLOSED = """
import os, sys
from harness.data import datasets
for closed in ("ant", "ant/1.png"):
    os.chmod(os.path.join(sys.argv[1], closed), 0)
    try:
        datasets.load("folder", sys.argv[1])
    except datasets.DatasetError as error:
        print(error)
    os.chmod(os.path.join(sys.argv[1], closed), 0o755)
"""


def test_unreadable_files_are_rejected(tmp_path):
    write(tmp_path)
    gone = "-dac_override,-dac_read_search"  # what lets root read everything
    words = ["setpriv", f"--bounding-set={gone}", f"--inh-caps={gone}"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*words, sys.executable, "-c", CLOSED, str(tmp_path)],
        cwd=Path(__file__).parents[4],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        f"folder: 1 files or folders in {tmp_path} cannot be read (ant: Permission denied): grant yourself "
        "permission (chmod -R u+rX), or remove them",
        "folder: 1 files cannot be read (ant/1.png: Permission denied)",
    ]


def test_a_broken_link_is_rejected(tmp_path):
    write(tmp_path)
    (tmp_path / "ant" / "4.png").symlink_to("gone.png")
    with pytest.raises(DatasetError, match=r"cannot be read \(ant/4.png: a broken link\)"):
        datasets.load("folder", tmp_path)


def test_one_file_with_two_labels_is_rejected(tmp_path):
    write(tmp_path)
    (tmp_path / "ant" / "4.png").symlink_to("../bee/1.png")
    with pytest.raises(DatasetError, match=r"1 files are under two labels, by links to one file \(ant/4.png = bee/1"):
        datasets.load("folder", tmp_path)


def test_equal_files_with_two_labels_are_reported(tmp_path):
    write(tmp_path)
    names = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen")
    one, other = [names[c] for c in hash_order(names, "test-1")[:2]]
    (tmp_path / other / "1.png").write_bytes((tmp_path / one / "1.png").read_bytes())
    messages = [finding.sentence for finding in doctor.examine("folder", tmp_path).findings]
    first, second = sorted((one, other))
    assert (
        f"folder: 1 images are under two labels of a split, byte for byte ({first}/1.png = {second}/1.png)"
        in messages
    )


@pytest.mark.parametrize(
    "names", [("Train", "TEST", "Val"), ("training", "testing", "valid"), ("train", "Test", "validation")]
)
def test_split_folders_are_recognised_in_any_case(tmp_path, names):
    for name, classes in zip(names, ("ab", "cd", "ef"), strict=True):
        for class_name in classes:
            image(tmp_path / name / class_name / "1.png")
            image(tmp_path / name / class_name / "2.png")
    dataset = datasets.load("folder", tmp_path)
    found = {dataset.class_names[c]: str(s) for c, s in zip(dataset.labels, dataset.split, strict=True)}
    assert found == dict(zip("abcdef", ["train"] * 2 + ["test"] * 2 + ["validation"] * 2, strict=True))


def test_two_folders_for_one_split_are_rejected(tmp_path):
    for name in ("train/a", "Train/b", "test/c"):
        image(tmp_path / name / "1.png")
    with pytest.raises(DatasetError, match="contains Train, train, all of them for train: keep one"):
        datasets.load("folder", tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "ant ",
            "1 labels begin or end with a space, or contain invisible characters: 'ant ' begins or ends with a space",
        ),
        ("a\u200bnt", r"'a\u200bnt' contains U+200B ZERO WIDTH SPACE, which is invisible"),
        (
            "ANT",
            "labels that differ only in case, spaces or Unicode form: 'ANT' and 'ant'. Spell each class in one way",
        ),
    ],
)
def test_class_names_that_look_alike_are_rejected(tmp_path, name, words):
    write(tmp_path)
    image(tmp_path / name / "1.png")
    with pytest.raises(DatasetError) as caught:
        datasets.load("folder", tmp_path)
    assert words in str(caught.value)


def test_names_that_are_not_utf8_are_rejected_and_escaped(tmp_path):
    write(tmp_path)
    os.rename(tmp_path / "ant" / "1.png", os.fsencode(tmp_path / "ant") + b"/caf\xe9.png")
    with pytest.raises(
        DatasetError, match=r"1 files have names that are not UTF-8 \(ant/caf\\xe9.png\): rename them"
    ):
        datasets.load("folder", tmp_path)
    found = doctor.examine("folder", tmp_path)
    assert not found.sound
    assert r"(ant/caf\xe9.png)" in found.findings[0].sentence


def test_folders_of_unknown_type_are_searched(tmp_path, monkeypatch):
    for name in ("ant", "bee"):
        image(tmp_path / name / "1.png")
    monkeypatch.setattr(Walk, "_identity", lambda self, path: None)
    walk = Walk(str(tmp_path))
    assert walk.files() == ["ant/1.png", "bee/1.png"]
    assert walk.passed_over == ()
