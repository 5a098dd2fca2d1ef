"""A command in an empty folder that holds a small grid."""

import pytest

from harness.cli import main

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
def here(tmp_path, capsys, monkeypatch):
    """Runs a command in an empty folder that holds the grid `mine.yaml`; its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(TINY)

    def here(*words):
        try:
            code = main(list(words))
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return here
