"""A list of images in a CSV file."""

import pytest

from harness import datasets
from harness.datasets import DatasetError
from tests.harness.datasets.sources.manifest import write


def test_order_splits_and_roles_are_the_files(tmp_path):
    dataset = datasets.load("manifest", write(tmp_path))
    assert dataset.keys[:2] == ("images/ant/0.png", "images/ant/1.png")
    assert dataset.split.tolist() == ["train"] * 6 + ["validation"] * 6 + ["test"] * 6
    assert dataset.role.tolist() == [""] * 12 + ["query", "gallery", "gallery"] * 2
    assert datasets.load("manifest", tmp_path / "manifest.csv").index_fingerprint == dataset.index_fingerprint


def test_a_link_that_leaves_the_folder_is_named(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder)
    (folder / "images" / "ant").rename(tmp_path / "ant")
    (folder / "images" / "ant").symlink_to(tmp_path / "ant")
    with pytest.raises(
        DatasetError, match=f"line 2: path 'images/ant/0.png' leaves .*: a link leads to {tmp_path}/ant"
    ):
        datasets.load("manifest", folder)
    (folder / "images" / "ant").unlink()
    (tmp_path / "ant").rename(folder / "ants")
    (folder / "images" / "ant").symlink_to("../ants")  # a link inside the folder is none of it
    assert len(datasets.load("manifest", folder)) == 18


def test_role_may_be_left_out(tmp_path):
    write(tmp_path)
    lines = (tmp_path / "manifest.csv").read_text().splitlines()
    (tmp_path / "manifest.csv").write_text("\ufeff" + "\r\n".join(line.rpartition(",")[0] for line in lines))
    assert datasets.load("manifest", tmp_path).role is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/a.png,a,tset,", "line 2: no split named 'tset'; did you mean 'test'?"),
        ("images/a.png,a,test,querry", "line 2: no role named 'querry'; did you mean 'query'?"),
        ("images/a.png,a,train,query", "line 2: role 'query' in split 'train'; only test images have one"),
        ("../a.png,a,train,", "line 2: path '../a.png' leaves the folder of the manifest"),
        ("images/../../a.png,a,train,", "leaves the folder of the manifest"),
        ("/etc/a.png,a,train,", "leaves the folder of the manifest"),
        (",a,train,", "line 2: path is empty"),
        ("images/a.png,,train,", "line 2: label is empty"),
        ("images/a.png,a", "line 2: more or fewer values than columns"),
        ("images/a.png,a,test,query,1", "line 2: more or fewer values than columns"),
    ],
)
def test_wrong_lines_are_named(tmp_path, line, message):
    (tmp_path / "manifest.csv").write_text(f"path,label,split,role\n{line}\n")
    with pytest.raises(DatasetError) as caught:
        datasets.load("manifest", tmp_path)
    assert message in str(caught.value)


def test_all_mistakes_and_all_missing_files_are_named_at_once(tmp_path):
    file = tmp_path / "manifest.csv"
    file.write_text("path,label,split\na.png,a,tarin\nb.png,,train\n")
    with pytest.raises(DatasetError, match=r"(?s)2 mistakes.*line 2: .*'tarin'.*line 3: label is empty"):
        datasets.load("manifest", file)
    file.write_text("path,label,split\na.png,a,train\nb.png,b,train\n")
    with pytest.raises(DatasetError, match=r"(?s)2 files are missing.*a\.png.*b\.png"):
        datasets.load("manifest", file)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("path,label,split,roles", "no column named 'roles'; did you mean 'role'"),
        ("path,label", "has no column 'split'"),
        ("", "has no column 'path'"),
    ],
)
def test_wrong_columns_are_named(tmp_path, head, message):
    (tmp_path / "manifest.csv").write_text(head)
    with pytest.raises(DatasetError, match=message):
        datasets.load("manifest", tmp_path)


def test_a_file_that_is_no_csv_is_named(tmp_path):
    (tmp_path / "manifest.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DatasetError, match="is not a CSV file in UTF-8"):
        datasets.load("manifest", tmp_path)


def test_the_same_image_twice_is_refused(tmp_path):
    write(tmp_path)
    with open(tmp_path / "manifest.csv", "a") as file:
        file.write("\nimages/./ant/0.png,ant,train,")
    with pytest.raises(DatasetError, match=r"1 images are listed twice \(images/ant/0.png\)"):
        datasets.load("manifest", tmp_path)
