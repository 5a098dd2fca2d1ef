import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from harness.record import Epoch
from harness.reports import web
from harness.tables import leaderboard

BROWSER = shutil.which("chromium-headless-shell") or shutil.which("chromium")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


class Page(HTMLParser):
    """What a page says and asks for, and whether its elements close in order."""

    VOID = frozenset(("meta", "link", "img", "br", "hr", "wbr", "line", "polyline", "circle"))

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.asks = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.asks += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_one_file_that_closes_what_it_opens_and_asks_for_nothing(board):
    text = web.render(board)
    page = Page(text)
    assert page.open == []
    assert page.asks == []
    assert not re.search(r"https?:|url\(|@import|fetch\(", text)


def test_names_are_escaped(board, awkward):
    text = web.render(board)
    assert awkward in "".join(Page(text).words)
    assert "<f>" not in text
    assert "seed 0 failed (diverged: loss &lt;nan&gt; &amp; gone)" in text


def test_bars_stand_where_the_numbers_are(board):
    view = web.BlockView(board.blocks[0])
    row = next(row for row in board.blocks[0].rows if row.level == "input")
    half = 4.302652729911275 * 0.01 / 3**0.5
    bar = view.difference(row, "R@1").bar  # another row differs by 0.05, so the scale is −0.05 to 0.05
    assert (bar.reference, bar.at) == (50, 70)
    assert bar.low == pytest.approx(50 + 50 * (0.02 - half) / 0.05, abs=0.01)
    assert bar.high == pytest.approx(50 + 50 * (0.02 + half) / 0.05, abs=0.01)
    low, high = view.scales["R@1"]
    assert view.score(row, "R@1").bar.reference == pytest.approx(100 * (0.5 - low) / (high - low), abs=0.01)


def test_round_ticks():
    assert web.ticks(8.6, 30.1) == [10, 20, 30]
    assert web.ticks(0.31, 1.13) == [0.5, 1]
    assert web.ticks(-0.0004, 0.0011) == [0, 0.0005, 0.001]


def test_learning_curves_run_from_the_first_epoch_to_the_last(make_trial, make_record):
    def epoch(number, score):
        return Epoch(epoch=number, loss=1.0, lr=0.1, validation={"MAP@R": score}, train_s=1, validation_s=1)

    curve = (epoch(1, 0.0), epoch(2, 0.5), epoch(3, 1.0))
    view = web.BlockView(leaderboard([make_record(make_trial(), curve=curve, selected_epoch=3)]).blocks[0])
    chart = view.charts(view.block.rows[0])[1]
    (first, middle, last) = [tuple(map(float, point.split(","))) for point in chart.lines[0].split()]
    assert (first[0], middle[0], last[0]) == (web.LEFT, (web.LEFT + web.WIDTH - 6) / 2, web.WIDTH - 6)
    assert first[1] > middle[1] > last[1]
    assert middle[1] == pytest.approx((first[1] + last[1]) / 2, abs=0.1)
    assert chart.chosen == (last,)
    assert [text for _, text in chart.ticks] == ["0", "50", "100"]


@pytest.mark.skipif(not BROWSER, reason="needs a headless Chromium")
def test_sorting_and_unfolding_in_a_browser(board, tmp_path, awkward):
    click = """<script>
      const table = document.querySelector("table.board"), heads = table.tHead.querySelectorAll("button");
      const names = () => Array.from(table.tBodies, row => row.rows[0].cells[0].dataset.key).join(" ");
      const grouped = names(); heads[1].click(); const falling = names(); heads[1].click(); const rising = names();
      heads[1].click(); const again = names(); table.tBodies[0].rows[0].click();
      document.title = JSON.stringify({grouped, falling, rising, again, hidden: table.tBodies[0].rows[1].hidden});
    </script></body>"""
    page = tmp_path / "page.html"
    page.write_text(web.render(board).replace(awkward, "awkward").replace("</body>", click))
    words = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    dumped = subprocess.run(words, capture_output=True, text=True, timeout=60).stdout
    said = json.loads(html.unescape(re.search("<title>(.*?)</title>", dumped).group(1)))
    order = {
        name: [arm.partition("+")[2][:5] or arm for arm in said[name].split()] for name in said if name != "hidden"
    }
    assert order["grouped"] == ["contrastive", "a_b%c", "featu", "input", "pixels"]
    assert order["falling"] == ["input", "contrastive", "a_b%c", "pixels", "featu"]  # what has no score is last
    assert order["rising"] == ["pixels", "a_b%c", "contrastive", "input", "featu"]
    assert order["again"] == order["grouped"]
    assert said["hidden"] is False
