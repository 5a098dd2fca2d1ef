"""Wrong arguments and damaged files: every command prints a message and returns the right code, with no traceback."""

import json
import os
import shutil
from pathlib import Path

import pytest

from harness.cli import main
from harness.grid import Grid
from harness.runs.run import Run


@pytest.fixture
def command(finished, tmp_path, capsys, monkeypatch):
    """Run a command in a folder that holds `mine.yaml`, `base`, a file, an empty and a full folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    monkeypatch.chdir(tmp_path)

    def command(*words):
        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as ended:
            code = ended.code
        text = "".join(capsys.readouterr())
        assert "Traceback" not in text
        assert "bug in metrix-bench" not in text
        return code, text

    return command


NO_RUN = "nowhere is not a run folder: it has no records/"
FILE = "file is not a run folder: it has no records/"
FULL = "full is not a run and contains other files (thesis.tex): name a new or empty folder"
EMPTY = "is empty; give a value, or leave it out"
TWICE = "given twice"
WRONG = {
    "metrix-bench": "the following arguments are required: COMMAND",
    "rnu quick": "invalid choice: 'rnu' (choose from 'run', 'plan', 'trial', 'retry', 'status',",
    "plan qick": "qick: cannot run:\n  no grid or grid file named 'qick'; did you mean 'quick'?",
    "plan nowhere.yaml": "no grid or grid file named 'nowhere.yaml'; there are: frozen-all, frozen-cars,",
    "plan empty": "empty: cannot run:\n  this is a folder; a grid is a YAML file",
    "plan file": "file: cannot run:\n  the file contains no settings; see the shipped grids for examples",
    "plan mine.yaml more": "unexpected argument 'more'",
    "plan mine.yaml --otu x": "no option named '--otu'; did you mean '--out' or '--set'?",
    "plan ''": f"the value after plan {EMPTY}",
    "plan mine.yaml --out ''": f"the value after --out {EMPTY}",
    "plan mine.yaml --data=": f"the value after --data {EMPTY}",
    "run mine.yaml --address ''": f"the value after --address {EMPTY}",
    "status ''": f"the value after status {EMPTY}",
    "logs base ''": f"the value after base {EMPTY}",
    "plan mine.yaml --data a --data b": f"argument --data: {TWICE}",
    "plan mine.yaml --losses triplet --losses contrastive": f"argument --losses: {TWICE}",
    "trial mine.yaml --arm triplet --seed 0 --seed 0": f"argument --seed: {TWICE}",
    "plan mine.yaml --set epochs=2 --set epochs=3": "--set epochs=3: training.epochs is also set to 2",
    "plan mine.yaml --set lr=1 --set training.lr=2": "--set training.lr=2: training.lr is also set to 1",
    "plan mine.yaml --set epochs": "--set epochs: expected key=value, such as epochs=20",
    "plan mine.yaml --set =3": "--set =3: expected key=value, such as epochs=20",
    "plan mine.yaml --set epochs=": "training.epochs: nothing is not valid: it should be a whole number",
    "plan mine.yaml --set name=a/b": "name: 'a/b' is not valid: it should be letters, digits, '.', '_' and '-'",
    f"plan mine.yaml --set name={'n' * 101}": "is not valid: String should have at most 100 characters",
    "plan mine.yaml --losses triplet,": "'triplet,': a name is missing next to a comma",
    "plan mine.yaml --losses tripelt": "no entry of the grid's losses named 'tripelt'; did you mean 'triplet'?",
    "plan mine.yaml --levels baselin": "no entry of the grid's levels named 'baselin'; did you mean 'baseline'?",
    "plan mine.yaml --seeds x": "mine.yaml: cannot run:\n  --seeds x: a seed is a whole number\n",
    "plan mine.yaml --seeds 0,0": "seeds: 0 is listed twice",
    "plan mine.yaml --out file": "file is a file; a run is a folder",
    "plan mine.yaml --out full": FULL,
    "plan mine.yaml --out base --set dim=8": "base holds results of other settings:\n  model.dim was 16 and is now 8",
    "plan mine.yaml --out ftp://a/b": "ftp:// is not a bucket; a run is in a folder or at s3, gs,",
    "plan mine.yaml --cache file": "cannot write the cache in file: File exists",
    "plan omniglot --data nowhere": "nowhere",
    "run mine.yaml --out file": "file is a file; a run is a folder",
    "run mine.yaml --track tensorbord": "no tracker named 'tensorbord'; did you mean 'tensorboard'?",
    "run mine.yaml --address here": "'here' is not an address; expected auto, HOST:PORT or ray://HOST:PORT",
    "run mine.yaml --address ray:/x": "'ray:/x' is not an address; expected auto, HOST:PORT or ray://HOST:PORT",
    "run mine.yaml --device cuda": "'cuda': the only choice is cpu; without --device a grid uses all GPUs",
    "trial mine.yaml": "the following arguments are required: --arm",
    "trial mine.yaml --arm triplet+": "arm 'triplet+': cannot run:\n  expected loss, loss+level or",
    "trial mine.yaml --arm triplet[foo=1]": "no parameter of triplet named 'foo'; there are: ",
    "trial mine.yaml --arm triplet --seed 4294967296": "'4294967296' is not a whole number from 0 to 4294967295",
    "trial mine.yaml --arm triplet --out file": "file is a file; a run is a folder",
    "retry base": "retry needs --failed, or --only with part of an id",
    "retry nowhere --failed": NO_RUN,
    "retry file --failed": FILE,
    "status nowhere": NO_RUN,
    "status file": FILE,
    "status mine.yaml": "mine.yaml is not a run folder: it has no records/",
    "logs nowhere x": NO_RUN,
    "logs base x": "'x' matches no trial of base; choose one of\n  glyphs-test_resnet-contrastive-s0-",
    "stop nowhere": NO_RUN,
    "report nowhere": NO_RUN,
    "report file": FILE,
    "report full": "full is not a run folder: it has no records/",
    "report base nowhere --out new": NO_RUN,
    "report base base": "a report of several runs needs a folder to write to: --out FOLDER",
    "report base --out full": FULL,
    "report base --out file": "file is a file; a run is a folder",
    "report base --metrics foo": "no metric in these records named 'foo'; there are: MAP@R, R-Precision, R@1, R@2,",
    "report base --metrics R@1,R@1": "a metric is named twice in R@1, R@1",
    "report base --format latx": "no report format named 'latx'; did you mean 'latex'?",
    "report base --format foo": "there are: comma_separated, csv, figures, html, latex, markdown, md, parquet, pdf,",
    "report base --only foo=bar": "--only foo=bar: no filter named 'foo'; there are: arm, backbone, dataset, level,",
    "report base --only dataset": "--only 'dataset' is not written key=value, such as dataset=cub200",
    "report base --only dataset=glyps": "--only dataset: no dataset named 'glyps'; did you mean 'glyphs'?",
    "report base --only seed=7": "--only seed: no seed named '7'; there are: 0",
    "power nowhere": NO_RUN,
    "trace base contrastiv": "no arm named 'contrastiv'; did you mean 'contrastive'?",
    "audit": "audit needs a run folder, or --rules",
    "audit file": FILE,
    "verify nowhere": NO_RUN,
    "embed nowhere x full": "no images in full; ignored 1 files that are not images (thesis.tex)",
    "embed base x nowhere": "there is no folder nowhere",
    "embed base x file": "file is not a folder",
    "export nowhere x new": NO_RUN,
    "export base x new": "base has no finished trial named 'x'; there are: contrastive-s0, glyphs-test_resnet-",
    "export base contrastive-s0 new": "did not keep its network (keep: embeddings); run it again with --set keep=",
    "verify base --only zzz": "base has no record with test scores and 'zzz' in its id",
    "verify base --device gpu": "no device 'gpu' on this machine; there are: cpu",
    "draw base contrastive --to x.xyz": "x.xyz: the name of a figure ends in .pdf, .svg, .png",
    "draw base contrastive --to file/x.pdf": "file: File exists",
    "draw nowhere x": NO_RUN,
    "doctor cub20": "no dataset named 'cub20'; did you mean 'cub200'?",
    "doctor glyphs --data file": "--data file: glyphs is embedded and reads no folder; leave it out",
    "doctor glyphs --option x": "'x' is not of the form KEY=VALUE",
    "doctor glyphs --option classes=3 --option classes=4": "--option classes is given twice; give it once",
    "prepare glyphs --side 0": "'0' is not a whole number of at least 1",
    "prepare folder --data empty": "folder: no class folders with images in empty",
    "prepare omniglot": "dataset 'omniglot' reads your own copy: say where it is with --data FOLDER",
    "list lossses": "invalid choice: 'lossses' (choose from 'backbones', 'datasets', 'forms', 'grids', 'levels',",
    "list losses contrastve": "no losses named 'contrastve'; did you mean 'contrastive'?",
    "list backbones 'zzz*'": "no backbones named 'zzz*'; there are: ",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_words(command, line):
    words = [word.strip("'") for word in line.split()]
    code, text = command(*words[words[0] == "metrix-bench" :])
    assert code == 2, text
    assert WRONG[line] in text


def test_the_same_setting_twice_is_accepted(command):
    code, text = command("plan", "mine.yaml", "--set", "epochs=2", "--set", "training.epochs=2", "--out", "new")
    assert (code, "mine: 2 trials" in text, "2 trials to run, about" in text) == (0, True, True)


def test_a_data_folder_that_is_not_read_is_reported(command):
    code, text = command("plan", "mine.yaml", "--data", "file")
    assert code == 0
    assert "--data file is not read: glyphs is embedded\n" in text


def test_a_list_keeps_the_names_that_fit_a_pattern(command):
    code, text = command("list", "losses", "con*")
    assert (code, "contrastive" in text, "triplet" in text) == (0, True, False)


def test_titles_are_not_folded_to_a_narrow_table(command):
    assert command("list", "stages", "test_resnet")[1].startswith("stages of test_resnet\n")
    shutil.rmtree("base/records")
    Path("base/plan.json").unlink()
    assert command("status", "base")[1].startswith("base: 0 done\nnothing\n")


def test_a_trial_without_ray_has_no_log(command):
    shutil.rmtree("base/logs")
    code, text = command("logs", "base", "contrastive")
    assert (code, text) == (2, "metrix-bench: base has no logs; metrix-bench run writes one for each trial\n")


READING = ("status base", "report base --format csv", "audit base", "power base", "stop base", "retry base --failed")


@pytest.mark.parametrize("content", [b"", b"{broken", b"\xff\xfe", b"[]", b'{"grids": 3}'])
def test_a_damaged_plan_is_reported_and_stays_until_it_is_replaced(command, content, tmp_path):
    Path("base/plan.json").write_bytes(content)
    for line in READING[:4]:
        code, text = command(*line.split())
        assert code == 0, text
        assert "base/plan.json cannot be read (" in text
        assert "), so missing trials are not shown; metrix-bench run writes it again\n" in text
    assert Path("base/plan.json").read_bytes() == content
    words = []
    run, grid = Run(tmp_path / "base", words.append), Grid.load(tmp_path / "mine.yaml")
    run.remember(grid, grid.trials(), [])
    assert len(run.requested().trials) == 2
    assert [path.read_bytes() for path in Path("base/set_aside").iterdir()] == [content]
    assert len(words) == 1


@pytest.mark.parametrize("content", [b"", b"{broken", b"\xff\xfe", b"[]", b'{"state": "running"}'])
def test_a_damaged_state_is_reported_and_ignored(command, content):
    Path("base/state.json").write_bytes(content)
    for line in ("status base", "stop base"):
        code, text = command(*line.split())
        assert code == 0, text
        assert "base/state.json cannot be read and is ignored; metrix-bench run writes it again\n" in text


def test_damaged_memory_is_reported_and_measured_again(tmp_path):
    words = []
    run = Run(tmp_path, words.append)
    assert run.memory() == {}
    for content, kept in ((b"{broken", {}), (b"[1]", {}), (b'{"a": 7, "b": "x"}', {"a": 7})):
        (tmp_path / "memory.json").write_bytes(content)
        assert run.memory() == kept
    sentence = f"{tmp_path}/memory.json cannot be read and is ignored; metrix-bench run writes it again"
    assert words == [sentence] * 2


@pytest.mark.parametrize("content", [b"{broken", b"3", b'{"a": 1}'])
def test_a_damaged_study_is_refused(command, content):
    Path("base/search").mkdir()
    Path("base/search/study.json").write_bytes(content)
    code, text = command("audit", "base")
    reason = "which keeps what the searches declared, cannot be read: restore it from a copy, or move it away"
    assert (code, text) == (2, f"metrix-bench: base/search/study.json, {reason}\n")


@pytest.mark.parametrize(
    "line", [*READING, "plan mine.yaml --out base", "trial mine.yaml --arm contrastive --out base"]
)
def test_a_record_of_a_later_version_stays_where_it_is(command, line):
    path = next(Path("base/records").iterdir())
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    code, text = command(*line.split())
    if line in ("stop base", "retry base --failed"):  # which read no record
        assert code == 0
    else:
        sentence = "was written by a later version of metrix-bench (schema 2; this one reads 1): install that version"
        assert (code, f"metrix-bench: {path} {sentence}, or name another folder\n" in text) == (2, True)
    assert path.exists()


@pytest.mark.parametrize("content", [b"", b"not json", b"\xff\xfe", b"{}", b'{"schema_version": "x"}'])
def test_a_damaged_record_is_set_aside_and_reported(command, content):
    path = next(Path("base/records").iterdir())
    path.write_bytes(content)
    code, text = command("status", "base")
    assert (code, f"{path} cannot be read (" in text, "2 waiting" in text) == (0, True, True)
    assert [kept.read_bytes() for kept in Path("base/set_aside").iterdir()] == [content]


def test_a_damaged_record_stays_in_a_read_only_folder(command, monkeypatch):
    path = next(Path("base/records").iterdir())
    path.write_text("not json")

    def closed(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("harness.runs.files.make_folder", closed)
    code, text = command("status", "base")
    assert (code, "its trial runs again (it stays where it is: Permission denied)\n" in text) == (0, True)
    assert path.exists()


def test_a_report_that_cannot_be_written_suggests_another_folder(command):
    Path("base/only").touch()
    code, text = command("report", "base", "--only", "seed=0", "--format", "csv")
    sentence = "cannot write in base/only/seed=0: Not a directory; choose another folder with --out (OUT=… of make)\n"
    assert (code, text) == (2, f"metrix-bench: {sentence}")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_damaged_outcomes_are_named(command, content):
    path = next(Path("base/per_query").iterdir())
    path.write_bytes(content)
    code, text = command("verify", "base")
    assert (code, f"{path} cannot be read: " in text, "matching records: 0 of 1" in text) == (1, True, True)
    code, text = command("report", "base", "--format", "csv")
    assert (code, f"{path} cannot be read as outcomes of queries" in " ".join(text.split())) == (0, True)


@pytest.mark.parametrize("content", [b"", b"\xff", b"a b"])
def test_a_damaged_identity_is_refused(command, content):
    Path("base/run.id").write_bytes(content)
    code, text = command("trial", "mine.yaml", "--arm", "triplet", "--out", "base")
    assert code == 2
    assert text == "metrix-bench: base/run.id, which identifies this run, is damaged: remove that file\n"


def test_run_folders_may_have_odd_names(command):
    name = "a*b?c [d] é \"q\" %s {x} $HOME 'p'"
    os.rename("base", name)
    for line in READING[:4]:
        words = [name if word == "base" else word for word in line.split()]
        code, text = command(*words)
        assert code == 0, text
    assert (Path(name) / "leaderboard.csv").exists()
