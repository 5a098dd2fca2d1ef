"""A board that holds every kind of row, and names that every format must escape."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

from harness.config import Choice
from harness.leaderboard.compose import board_of
from harness.runs.record import Failure

AWKWARD = "a_b%c&d#e<f>g|h*~^{}\\$"
BASE, VARIANT = (0.40, 0.50, 0.60), (0.41, 0.53, 0.62)


@pytest.fixture
def awkward():
    return AWKWARD


@pytest.fixture
def make_board(make_trial, make_record):
    def make(order=lambda records: records):
        base = [make_record(make_trial(seed=s), score) for s, score in enumerate(BASE)]
        variant = [make_record(make_trial("contrastive+input", s), score) for s, score in enumerate(VARIANT)]
        strange = make_record(make_trial("contrastive+embedding"), 0.45, arm=f"contrastive+{AWKWARD}")
        floor = make_record(make_trial("pixels"), 0.2, curve=(), selected_epoch=None)
        lost = make_trial("proxy_anchor", 0, dataset="omniglot")
        failure = Failure(
            id=lost.id, trial=lost, arm=lost.arm.label, kind="diverged", reason="loss <nan> & gone", finished="now"
        )
        refused = ((make_trial("contrastive+feature"), "there is no such form"),)
        return board_of(order([*base, *variant, strange, floor]), [failure], refused=refused)

    return make


@pytest.fixture
def board(make_board):
    return make_board()


@pytest.fixture
def apart(make_trial, make_record):
    """Two blocks of one dataset and backbone, told apart by the number of dimensions."""
    small = make_record(make_trial(), 0.4)
    model = small.trial.model.model_copy(update={"dim": 128})
    wide = small.trial.model_copy(update={"model": model, "dataset": Choice(name="glyphs")})
    return board_of([small, make_record(wide, 0.5, id="wide")])


@pytest.fixture
def judged(make_trial, make_record):
    """Five seeds: contrastive 60, +input 62 and +feature 62.01 of it not separable, all seeds alike but for noise."""
    noise = (0.000, 0.002, -0.001, 0.001, -0.002)

    def arm(name, mean, own):
        return [make_record(make_trial(name, s), mean + own * noise[s] + 2 * noise[(s + 2) % 5]) for s in range(5)]

    return board_of(
        arm("contrastive", 0.60, 0) + arm("contrastive+input", 0.62, 1) + arm("contrastive+feature", 0.6201, -1)
    )


@pytest.fixture(scope="session")
def need():
    """The path of a program, or the test is skipped; where everything should be installed, it fails."""

    def find(*names):
        path = next(filter(None, map(shutil.which, names)), None)
        if path is None and os.environ.get("CI") == "true":
            pytest.fail(f"{names[0]} is not installed; .ci/run installs it")
        if path is None:
            pytest.skip(f"needs {names[0]}")
        return path

    return find


QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture
def browse(need, tmp_path):
    """What a script, given as the body of an async function, returns when it runs in a page in a real browser."""

    def run(text, script, address="", width=1280):
        act = f"<script>(async () => {{ {script} }})().then(said => (document.title = JSON.stringify(said)),"
        act += " error => (document.title = JSON.stringify(String(error.stack))))</script></body>"
        page = tmp_path / "page.html"
        page.write_text(text.replace("</body>", act))
        browser = need("chromium-headless-shell", "chromium", "google-chrome")
        words = [
            browser,
            *QUIET,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--virtual-time-budget=4000",
            "--dump-dom",
        ]
        done = subprocess.run([*words, page.as_uri() + address], stdout=subprocess.PIPE, text=True, timeout=120)
        said = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout, re.DOTALL).group(1)))
        assert not isinstance(said, str), said
        return said

    return run
