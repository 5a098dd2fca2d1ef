"""What the doctor says of a copy: right, in part, damaged, in the wrong split, or another thing altogether."""

import io
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from harness import cli
from harness.data import datasets, doctor
from harness.data.datasets import cub200 as standard
from tests.harness.data.datasets.sources import cub200, folder


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """A copy of the birds, in a world where its size is the standard one."""
    small = replace(standard.STANDARD, images=(16, 16), classes=(4, 4), numbers=(range(1, 5), range(101, 105)))
    monkeypatch.setattr("harness.data.datasets.cub200.STANDARD", small)
    return cub200.write(tmp_path)


def sentences(found, severity="E"):
    return [finding.sentence for finding in found.findings if finding.severity == severity]


def test_a_standard_copy_has_no_findings(birds):
    seen = []
    found = doctor.examine("cub200", birds, progress=lambda done, total: seen.append((done, total)))
    assert found.sound
    assert found.findings == ()
    assert found.title == "CUB-200-2011"
    assert found.counts == found.expected == {"train": (16, 4), "test": (16, 4)}
    assert found.fingerprint == datasets.load("cub200", birds).index_fingerprint
    assert (seen[0], seen[-1]) == ((1, 32), (32, 32))


def test_damaged_missing_and_equal_files_are_all_found(tmp_path):
    dataset = datasets.load("cub200", cub200.write(tmp_path), allow_nonstandard=True)
    files = [Path(file) for file in dataset.files or ()]
    whole = files[0].read_bytes()
    files[1].write_bytes(files[1].read_bytes()[:400])
    files[2].write_bytes(b"")
    files[3].write_bytes(b"<html>404 Not Found</html>")
    files[4].unlink()
    files[20].write_bytes(whole)
    files[6].write_bytes(files[6].read_bytes() + b"\0\0")  # padded: not as it should be, but whole
    found = doctor.examine("cub200", tmp_path, allow_nonstandard=True)
    assert not found.sound
    missing, broken = sentences(found)
    assert re.fullmatch(rf"cub200: 1 of 32 files are missing in \S+ \({dataset.keys[4]}\)", missing)
    assert broken.startswith("cub200: 3 of 32 images cannot be read (")
    assert [problem.partition(":")[0] for problem in found.unreadable] == [dataset.keys[i] for i in (1, 2, 3)]
    assert "truncated" in found.unreadable[0].lower()
    assert found.unreadable[1].endswith("the file is empty")
    nonstandard, equal = sentences(found, "W")
    assert nonstandard.startswith("FAIR-01 cub200: 16/16 images, expected 5864/5924.")
    assert nonstandard.endswith("This is not CUB-200-2011.")
    assert equal.startswith("cub200: 1 images are in two splits, byte for byte (")
    assert f"{dataset.keys[0]} = {dataset.keys[20]}" in equal


def test_damage_inside_a_file_is_found(tmp_path):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(file, "PNG")
    broken = bytearray(file.getvalue())
    broken[len(broken) // 2] ^= 255
    data = folder.write(tmp_path)
    (data / "ant" / "1.png").write_bytes(broken)
    found = doctor.examine("folder", data)
    assert [problem.partition(":")[0] for problem in found.unreadable] == ["ant/1.png"]


def test_another_size_is_an_error_unless_allowed(tmp_path):
    cub200.write(tmp_path)
    found = doctor.examine("cub200", tmp_path)
    assert not found.sound
    assert sentences(found)[0].startswith("FAIR-01 cub200: 16/16 images")
    assert found.counts == {"train": (16, 4), "test": (16, 4)}
    assert doctor.examine("cub200", tmp_path, allow_nonstandard=True).sound


def test_a_folder_without_a_copy_gets_advice(tmp_path):
    for name in ("cub200", "cars196", "sop", "inshop"):
        found = doctor.examine(name, tmp_path)
        assert not found.sound
        assert found.counts == {}
        assert sentences(found)[0].startswith(f"{name}: there is no ")
        assert "What goes where" not in sentences(found)[0]
        assert re.search("What goes where: .*\n  Where to get it: ", found.advice)
    with pytest.raises(datasets.ArgumentError, match="dataset 'cub200' reads your own copy: say where it is with"):
        doctor.examine("cub200", None)


def test_a_class_in_two_splits_and_an_image_in_both_lists(tmp_path):
    home = import_module("tests.harness.data.datasets.sources.sop").write(tmp_path) / "Stanford_Online_Products"
    with open(home / "Ebay_test.txt", "a") as file:
        file.write("99 2 3 chair_final/111000000002_0.JPG\n")
    found = doctor.examine("sop", tmp_path, allow_nonstandard=True)
    assert sentences(found) == [
        "sop: 1 images are listed twice (chair_final/111000000002_0.JPG)",
        "FAIR-02 sop: 1 classes in both train and test (2)",
    ]


@pytest.mark.parametrize("name", [name for name in datasets.names() if datasets.describe(name).needs_data])
def test_every_dataset_can_be_examined(name, tmp_path):
    source = import_module(f"tests.harness.data.datasets.sources.{name}")
    found = doctor.examine(name, source.write(tmp_path), **getattr(source, "OPTIONS", {}))
    assert found.sound, found.findings
    assert sum(images for images, _ in found.counts.values()) > 0


def test_the_command_prints_all_findings(tmp_path, capsys):
    cub200.write(tmp_path)
    assert cli.main(["doctor", "cub200", "--data", str(tmp_path)]) == cli.FAILED
    output = capsys.readouterr().out
    assert re.search(r"train +16 +4 +5864 +100", output)
    assert re.search(r"fingerprint [0-9a-f]{64}\nE  FAIR-01 cub200: 16/16 images", output)
    assert "Where to get it: the university's old page" in output
    words = ["--option", "allow_nonstandard=true", "--thorough"]
    assert cli.main(["doctor", "cub200", "--data", str(tmp_path), *words]) == cli.OK
    assert "cub200: ready to run" in capsys.readouterr().out


def test_the_command_knows_a_standard_copy(birds, capsys):
    assert cli.main(["doctor", "cub200", "--data", str(birds)]) == cli.OK
    assert capsys.readouterr().out.endswith("cub200: a standard copy of CUB-200-2011\n")


def test_prepare_announces_and_decodes(tmp_path, capsys):
    cub200.write(tmp_path)
    words = ["--data", str(tmp_path), "--cache", str(tmp_path / "cache"), "--side", "40"]
    assert cli.main(["prepare", "cub200", *words]) == cli.WRONG_INPUT
    assert "FAIR-01 cub200" in capsys.readouterr().err
    assert cli.main(["prepare", "cub200", *words, "--option", "allow_nonstandard=true"]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cub200 at 40 px takes about 0.00 GB and ")
    assert lines[-2] == "decoding cub200: 32 of 32"
    assert re.match(r"32 images in .*images-cub200-40px-\w+\.bin, 0\.00 GB", lines[-1])
    assert cli.main(["prepare", "cub200", *words, "--option", "allow_nonstandard=true"]) == cli.OK
    assert len(capsys.readouterr().out.splitlines()) == 1, "there is nothing to do any more"


def test_options_of_the_commands(capsys, tmp_path):
    cub200.write(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["doctor", "cub200", "--option", "resolution"])
    assert "'resolution' is not of the form KEY=VALUE" in capsys.readouterr().err
    for name, words, sentence in (
        (
            "inshop",
            ["--data", str(tmp_path), "--option", "resolution=1"],
            "resolution = 1, expected something like 'low'",
        ),
        ("inshop", ["--data", str(tmp_path), "--option", "resolutoin=low"], "did you mean 'resolution'?"),
        ("cub200", ["--data", str(tmp_path / "nowhere")], "there is no "),
        ("cub200", [], "say where it is with --data FOLDER (data=… in Python)\n  What goes where: "),
    ):
        assert cli.main(["doctor", name, *words]) == cli.WRONG_INPUT
        assert sentence in capsys.readouterr().err


def test_two_training_classes_are_rejected_as_in_a_plan(tmp_path):
    for split, names in (("train", "ab"), ("test", "cd")):
        for name in names:
            for number in (1, 2):
                folder.image(tmp_path / split / name / f"{number}.png")
    found = doctor.examine("folder", tmp_path)
    assert sentences(found) == [
        "folder: 2 training classes, 2 of them for validation: at least 2 must remain to train on"
    ]
    assert not found.sound


def test_equal_pixels_in_two_formats_are_found_if_thorough(tmp_path):
    data = folder.write(tmp_path)
    dataset = datasets.load("folder", data)
    assert dataset.files is not None
    one, other = (Path(dataset.files[list(dataset.split).index(split)]) for split in ("train", "test"))
    Image.open(one).save(other.with_suffix(".bmp"))
    other.unlink()
    assert doctor.examine("folder", data).sound
    assert not [message for message in sentences(doctor.examine("folder", data), "W") if "in two splits" in message]
    messages = [
        message
        for message in sentences(doctor.examine("folder", data, thorough=True), "W")
        if "in two splits" in message
    ]
    assert len(messages) == 1
    assert messages[0].startswith("folder: 1 images are in two splits, pixel for pixel (")
