"""The products: two lists, and where the paths in them begin."""

import pytest

from harness.data import datasets
from harness.data.datasets import DatasetError
from tests.harness.data.datasets.sources.sop import write


def test_lists_decide_the_split(tmp_path):
    dataset = datasets.load("sop", write(tmp_path), allow_nonstandard=True)
    assert dataset.keys[0] == "cabinet_final/111000000001_0.JPG"
    assert dataset.class_names == ("1", "11319", "11320", "11321", "11322", "2", "3", "4")
    assert (dataset.split == "train").sum() == 16


def test_lists_may_be_in_another_folder_than_the_images(tmp_path):
    home = write(tmp_path) / "Stanford_Online_Products"
    first = datasets.load("sop", tmp_path, allow_nonstandard=True)
    (home / "Info_Files").mkdir()
    (home / "images").mkdir()
    for path in list(home.glob("*.txt")):
        path.rename(home / "Info_Files" / path.name)
    for path in list(home.glob("*_final")):
        path.rename(home / "images" / path.name)
    assert datasets.load("sop", tmp_path, allow_nonstandard=True).index_fingerprint == first.index_fingerprint


def test_a_class_in_both_lists_and_an_image_in_both(tmp_path):
    home = write(tmp_path) / "Stanford_Online_Products"
    test = home / "Ebay_test.txt"
    before = test.read_text()
    test.write_text(before + "99 2 3 chair_final/111000000002_0.JPG\n")
    with pytest.raises(
        DatasetError,
        match=r"(?s)1 images are listed twice \(chair_final/.*FAIR-02 sop: 1 classes in both train and test \(2\)",
    ):
        datasets.load("sop", tmp_path, allow_nonstandard=True)


@pytest.mark.parametrize(
    ("line", "text", "words"),
    [
        (0, "id class super_class_id path", "the first line 'id class super_class_id path'"),
        (5, "20 11320 5", r"1 lines like 20 11320 5$"),
        (5, "20 mug 5 mug_final/1_1.JPG", r"1 lines like 20 mug 5 mug_final/1_1.JPG"),
    ],
)
def test_a_list_in_another_format_is_rejected(tmp_path, line, text, words):
    path = write(tmp_path) / "Stanford_Online_Products" / "Ebay_test.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:line], text, *lines[line + 1 :]]))
    with pytest.raises(DatasetError, match=rf"Ebay_test\.txt is not in the published format .*: it has {words}"):
        datasets.load("sop", tmp_path, allow_nonstandard=True)


def test_a_missing_or_empty_list_is_named(tmp_path):
    home = write(tmp_path) / "Stanford_Online_Products"
    (home / "Ebay_test.txt").write_text("")
    with pytest.raises(DatasetError, match=r"Ebay_test\.txt is not in the published format"):
        datasets.load("sop", tmp_path)
    (home / "Ebay_test.txt").unlink()
    with pytest.raises(DatasetError, match=r"sop: there is no Ebay_test\.txt in"):
        datasets.load("sop", tmp_path)


def test_a_list_that_is_not_utf8_names_its_line(tmp_path):
    path = write(tmp_path) / "Stanford_Online_Products" / "Ebay_test.txt"
    path.write_bytes(path.read_bytes().replace(b"chair_final/", b"chaise_fran\xe7aise/", 1))
    with pytest.raises(DatasetError, match=r"Ebay_test\.txt is not in UTF-8: line \d+ contains .*fran\\xe7aise"):
        datasets.load("sop", tmp_path, allow_nonstandard=True)
