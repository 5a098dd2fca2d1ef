"""A list of images in a CSV file."""

import os

import pytest

from harness.data import datasets
from harness.data.datasets import DatasetError
from tests.harness.data.datasets.sources.manifest import write


def test_order_splits_and_roles_come_from_the_file(tmp_path):
    dataset = datasets.load("manifest", write(tmp_path))
    assert dataset.keys[:2] == ("images/ant/0.png", "images/ant/1.png")
    assert dataset.split.tolist() == ["train"] * 6 + ["validation"] * 6 + ["test"] * 6
    assert dataset.role is not None
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


def test_role_may_be_omitted(tmp_path):
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


def test_a_file_that_is_not_csv_is_named(tmp_path):
    (tmp_path / "manifest.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DatasetError, match="is not in UTF-8: line 1 contains "):
        datasets.load("manifest", tmp_path)


def test_a_repeated_image_is_rejected(tmp_path):
    write(tmp_path)
    with open(tmp_path / "manifest.csv", "a") as file:
        file.write("\nimages/./ant/0.png,ant,train,")
    with pytest.raises(DatasetError, match=r"line 20: path 'images/./ant/0.png' is listed in line 2 already$"):
        datasets.load("manifest", tmp_path)


def refusal(folder, lines, encoding="utf-8"):
    (folder / "manifest.csv").write_bytes("\n".join(["path,label,split,role", *lines]).encode(encoding))
    with pytest.raises(DatasetError) as caught:
        datasets.load("manifest", folder)
    return str(caught.value).splitlines()


def test_one_mistake_in_many_rows_is_one_sentence(tmp_path):
    said = refusal(tmp_path, [f"../{i}.png,a,train," for i in range(60_000)])
    assert said[0] == f"manifest: 60000 mistakes in {tmp_path}/manifest.csv:"
    assert said[1] == "  line 2: path '../0.png' leaves the folder of the manifest"
    assert said[-1] == "  lines 7, 8, 9, 10, 11 and 59990 more: more mistakes of the same kind"
    assert len(said) == 7
    said = refusal(tmp_path, [f"{i}.png,a,tarin," for i in range(60_000)])
    assert said[1:] == ["  lines 2, 3, 4, 5, 6 and 59995 more: no split named 'tarin'; did you mean 'train'?"]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("ant ", "line 2: label 'ant ' begins or ends with a space"),
        ("a\u200bnt", r"line 2: label 'a\u200bnt' contains U+200B ZERO WIDTH SPACE, which is invisible"),
        ("\ufeffant", r"line 2: label '\ufeffant' contains U+FEFF ZERO WIDTH NO-BREAK SPACE, which is invisible"),
        ("an\u00a0t", r"line 2: label 'an\xa0t' contains U+00A0 NO-BREAK SPACE, which is invisible"),
        ("an\x07t", r"line 2: label 'an\x07t' contains U+0007 a control character, which is invisible"),
    ],
)
def test_labels_with_invisible_characters_are_rejected(tmp_path, label, words):
    assert refusal(tmp_path, [f"a.png,{label},train,"])[1] == f"  {words}"


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ("ant", "Ant", "'ant' (lines 2, 4) and 'Ant' (line 3)"),
        ("caf\u00e9", "cafe\u0301", r"'caf\u00e9' (lines 2, 4) and 'cafe\u0301' (line 3)"),
        ("m2", "m\u00b2", r"'m2' (lines 2, 4) and 'm\xb2' (line 3)"),
        ("red ant", "red  ant", "'red ant' (lines 2, 4) and 'red  ant' (line 3)"),
    ],
)
def test_labels_that_look_alike_are_rejected_with_their_lines(tmp_path, first, second, named):
    said = refusal(tmp_path, [f"{i}.png,{label},train," for i, label in enumerate((first, second, first))])
    start = "  line 2: labels that differ only in case, spaces or Unicode form: "
    assert said[1].startswith(start)
    assert said[1][len(start) :].encode("ascii", "backslashreplace").decode().replace(r"\xe9", r"\u00e9") == (
        f"{named}. Spell each class in one way, and give different classes clearly different names"
    )


def test_joiners_inside_a_word_are_part_of_its_spelling(tmp_path):
    write(tmp_path)
    text = (tmp_path / "manifest.csv").read_text(encoding="utf-8")
    (tmp_path / "manifest.csv").write_text(
        text.replace(",ant,", ",\u0645\u06cc\u200c\u0634\u0648\u062f,"), encoding="utf-8"
    )
    assert "\u0645\u06cc\u200c\u0634\u0648\u062f" in datasets.load("manifest", tmp_path).class_names


def test_split_and_role_with_spaces_are_rejected(tmp_path):
    assert refusal(tmp_path, ["a.png,a,train ,", "b.png,a,test,query "])[1:] == [
        "  line 2: no split named 'train '; did you mean 'train'?",
        "  line 3: no role named 'query '; did you mean 'query'?",
    ]


@pytest.mark.parametrize("through", ["as it is", "through a link"])
def test_an_absolute_path_inside_the_folder_becomes_relative(tmp_path, through):
    folder = tmp_path / "data"
    folder.mkdir()
    text = (write(folder) / "manifest.csv").read_text()
    before = datasets.load("manifest", folder).index_fingerprint
    (folder / "manifest.csv").write_text(text.replace("images/", f"{folder}/images/"))
    if through == "through a link":
        (tmp_path / "other").symlink_to(folder)
        folder = tmp_path / "other"
    assert datasets.load("manifest", folder).index_fingerprint == before


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_with_a_byte_order_mark_are_read(tmp_path, encoding):
    before = datasets.load("manifest", write(tmp_path)).index_fingerprint
    text = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_bytes(text.encode(encoding))
    assert datasets.load("manifest", tmp_path).index_fingerprint == before


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    assert refusal(tmp_path, ["a.png,a,train,", "b.png,caf\u00e9,train,"], "latin-1") == [
        f"manifest: {tmp_path}/manifest.csv is not in UTF-8: "
        r"line 3 contains 'b.png,caf\xe9,train,'; save it as UTF-8"
    ]


def test_one_file_with_two_paths_is_rejected(tmp_path):
    write(tmp_path)
    (tmp_path / "images" / "ants").symlink_to("ant")
    text = (tmp_path / "manifest.csv").read_text()
    for label, words in (
        ("bee", r"1 files are under two labels, by links to one file \(images/ant/0.png = images/ants/0.png\)"),
        ("ant", r"1 files are listed twice, by different paths \(images/ant/0.png = images/ants/0.png\)"),
    ):
        (tmp_path / "manifest.csv").write_text(f"{text}\nimages/ants/0.png,{label},train,")
        with pytest.raises(DatasetError, match=words):
            datasets.load("manifest", tmp_path)


def test_a_path_listed_again_names_both_lines_and_what_differs(tmp_path):
    said = refusal(tmp_path, ["a.png,a,train,", "b.png,b,train,", "./a.png,b,test,"])
    assert said[1] == "  line 4: path './a.png' is listed in line 2 already with another label and split"


def test_a_name_in_the_other_unicode_form_is_explained(tmp_path):
    write(tmp_path)
    (tmp_path / "images" / "ant" / "0.png").rename(tmp_path / "images" / "ant" / "e\u0301.png")
    text = (tmp_path / "manifest.csv").read_text().replace("images/ant/0.png", "images/ant/\u00e9.png")
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"1 of 18 files are missing .* in another Unicode form"):
        datasets.load("manifest", tmp_path)


def test_a_folder_or_a_pipe_instead_of_an_image_is_rejected(tmp_path):
    write(tmp_path)
    (tmp_path / "images" / "ant" / "0.png").unlink()
    os.mkfifo(tmp_path / "images" / "ant" / "0.png")
    (tmp_path / "images" / "ant" / "1.png").unlink()
    (tmp_path / "images" / "ant" / "1.png").mkdir()
    words = r"2 files cannot be read \(images/ant/0.png: not a file, images/ant/1.png: a folder\)"
    with pytest.raises(DatasetError, match=words):
        datasets.load("manifest", tmp_path)
