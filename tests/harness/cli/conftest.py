"""Commands in a folder that holds a small grid, without its run and with it."""

import pytest

from harness.cli import main
from harness.grid import Grid
from harness.runs.run import Run

TINY = """
name: mine
datasets: [{name: glyphs, options: {classes: 16}}]
backbones: [test_resnet]
losses: [contrastive, triplet]
levels: [baseline, input]
floors: []
seeds: [0]
model: {dim: 16}
images: {side_px: 32}
training: {epochs: 1, batch_size: 20, lr: 1.0e-3, schedule: constant}
"""


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """Run a command in a folder that holds only the grid `mine.yaml`; returns its exit code and output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(TINY)

    def command(*words):
        try:
            code = main(list(words))
        except SystemExit as ended:
            code = ended.code
        output = capsys.readouterr()
        return code, output.out + output.err

    return command


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with the grid `mine.yaml`, and in `base` its run with one of two trials done."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "mine.yaml").write_text(TINY.replace("[baseline, input]", "[baseline]"))
    words = ["trial", str(folder / "mine.yaml"), "--arm", "contrastive", "--out", str(folder / "base")]
    assert main(words) == 0
    run, grid = Run(folder / "base"), Grid.load(folder / "mine.yaml")
    run.remember(grid, grid.trials(), [])
    run.write_state({"state": "ended", "driver": "process 1 on there", "updated": "2026-01-01T00:00:00Z"})
    (run.folder / "logs").mkdir()
    run.log_path(run.records()[0].id).write_text("attempt 1\n")
    return folder
