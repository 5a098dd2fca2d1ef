"""Reports of two real runs stay the same, byte for byte, until a difference is wanted.

`guard/quick.zip` and `guard/folds.zip` are records, failures, plans and outcomes of test queries (a few arms) of

    metrix-bench run quick --seeds 0,1,2,3,4
    metrix-bench run guard/folds.yaml

where the second has folds, a search, failures and arms without a Metrix form. When a difference is wanted, write the
expected files again and read what `git diff` says of them:

    python -m tests.harness.reports.test_guard
"""

import json
import os
import re
import tempfile
import zipfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from harness import cli

GUARD = Path(__file__).parent / "guard"
RUNS = ("quick", "folds")
FORMATS = "csv,markdown,latex,web"


def report(name: str, folder: Path) -> dict[str, str]:
    """The text files of a report of one of the runs, by name; of the page, the data that it holds."""
    run = folder / name
    with zipfile.ZipFile(GUARD / f"{name}.zip") as archive:
        archive.extractall(run)
    with redirect_stdout(StringIO()) as shown:
        assert cli.main(["report", str(run), "--format", FORMATS]) == 0
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(run.glob("leaderboard*"))}
    page = re.search(r'<script type="application/json" id="data">(.*?)</script>', files.pop("leaderboard.html"), re.S)
    data = json.loads(page[1])
    for gallery in data["gallery"]:
        gallery["images"] = len(gallery["images"])
    files["page.json"] = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    files["terminal.txt"] = shown.getvalue().partition("\nwritten: ")[0] + "\n"
    return files


@pytest.mark.parametrize("name", RUNS)
def test_the_report_of_a_run_is_what_it_was(name, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    files = report(name, tmp_path)
    expected = {path.name: path.read_text(encoding="utf-8") for path in sorted((GUARD / name).iterdir())}
    assert sorted(files) == sorted(expected)
    for file, text in files.items():
        assert text == expected[file], f"{name}/{file} differs"


if __name__ == "__main__":
    os.environ["COLUMNS"] = "200"
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            files = report(name, Path(folder))
        (GUARD / name).mkdir(exist_ok=True)
        for file, text in files.items():
            (GUARD / name / file).write_text(text, encoding="utf-8")
