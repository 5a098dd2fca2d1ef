import json
import re
from decimal import ROUND_HALF_UP, Decimal
from html.parser import HTMLParser

import pytest

from harness.record import Epoch
from harness.reports import _page_data as data
from harness.reports import web
from harness.reports._reproduction import command
from harness.tables import leaderboard


class Page(HTMLParser):
    """What a page says and asks for, and whether its elements close in order."""

    VOID = frozenset(("meta", "link", "img", "br", "hr", "wbr", "input"))

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

    def handle_data(self, text):
        self.words.append(text)


def test_one_file_that_closes_what_it_opens_and_asks_for_nothing(board):
    text = web.render(board)
    page = Page(text)
    assert page.open == []
    assert page.asks == []
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest", text)


def test_names_cannot_end_their_element(board, awkward):
    text = web.render(board)
    assert "<f>" not in text
    held = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1)
    )
    assert f"contrastive+{awkward}" in held["blocks"][0]["rows"]["arm"]
    assert "seed 0 failed (diverged: loss <nan> & gone)" in held["blocks"][1]["rows"]["reason"]


def test_the_page_prints_what_the_tables_print():
    for value in (0.5204996, 0.5205001, 0.1225, 0.1235, 0.12250000001, 1, 0.0):
        number = Decimal(data._rounded(value, 1))
        assert str(number.quantize(Decimal("0.1"), ROUND_HALF_UP)) == f"{100 * value:.1f}", "as a browser rounds"
    assert f"{12.25:.1f}" == "12.2", "Python rounds a tie to the even digit, a browser up"
    assert data._rounded(float("nan"), 1) is None


def test_a_curve_is_two_characters_a_point():
    low, high, text = data.encoded([0.1, 0.5, None, 0.3], 100)
    assert (low, high) == (10, 50)
    assert text == "00" + "__" + ".." + "W0"  # 2048 of 4095 steps: 32 · 64 + 0
    assert data.encoded([None]) is None


def test_curves_are_thinned_until_the_page_is_small_enough(make_trial, make_record, monkeypatch):
    curve = tuple(
        Epoch(epoch=e, loss=1.0, lr=0.1, validation={"MAP@R": e / 500}, train_s=1, validation_s=1)
        for e in range(1, 401)
    )
    board = leaderboard([make_record(make_trial(), curve=curve, selected_epoch=400)])
    page = data.page_data(board)
    assert len(page["epochs"][0]) == data.MOST_POINTS
    assert (page["epochs"][0][0], page["epochs"][0][-1]) == (1, 400)
    monkeypatch.setattr(data, "MOST_BYTES", 1000)
    assert len(data.page_data(board)["epochs"][0]) == 12


def test_the_command_gives_the_very_trial_or_says_that_it_may_not(make_trial):
    from harness.config import Grid

    trial = Grid.load("quick", ["epochs=3", "weight_decay=0.5"]).trials()[3]
    words, known = command(trial, "quick")
    assert known
    assert words == (
        "metrix-bench trial quick --datasets glyphs --backbones test_resnet --set training.epochs=3 "
        f"--set training.weight_decay=0.5 --arm {trial.arm.label} --seed 0"
    )
    assert command(make_trial(), "my_grid")[1] is False
    fold = Grid.load("quick", ["folds=4"]).trials()[1]
    words, known = command(fold, "quick")
    assert known
    assert words.endswith(f"--set folds=4 --arm {fold.arm.label} --fold 2 --seed 0")


def test_sorting_filtering_unfolding_and_downloads_in_a_browser(browse, board, awkward):
    text = web.render(board)
    said = browse(
        text,
        """
        const names = () => [...document.querySelectorAll("tr.row")].map(line => {
          const [block, row] = line.dataset.key.split("/"); return DATA.blocks[block].rows[row].arm; });
        const head = title => [...document.querySelectorAll("[data-sort]")].find(one => one.textContent === title);
        const files = []; URL.createObjectURL = blob => (files.push(blob), "blob:x");
        HTMLAnchorElement.prototype.click = function () { files.push(this.download); };
        const type = words => { find("query").value = words; find("query").dispatchEvent(new Event("input")); };
        const said = { grouped: names() };
        head("R@1").click(); said.falling = names(); said.address = location.hash;
        said.sorted = head("R@1").parentElement.ariaSort;
        head("R@1").click(); said.rising = names(); head("R@1").click(); said.again = names();
        document.querySelector("tr.row").click();
        said.detail = document.querySelector("tr.detail").textContent;
        said.charts = document.querySelectorAll("tr.detail svg").length;
        type("input"); said.found = names(); said.count = find("count").textContent;
        for (const format of ["csv", "json", "latex"]) document.querySelector(`[data-format=${format}]`).click();
        said.files = []; for (const file of files) said.files.push(file.text ? await file.text() : file);
        type("zzz"); said.nothing = names(); type("");
        [...document.querySelectorAll("[data-facet=level] input")].find(box => box.value === "floor").click();
        said.faceted = names(); said.link = location.hash;
        return said;
        """,
    )
    first = ["contrastive", f"contrastive+{awkward}", "contrastive+feature", "contrastive+input", "pixels"]
    others = ["proxy_anchor"]
    assert said["grouped"] == [*first, *others]
    assert said["falling"] == [first[3], first[0], first[1], first[4], first[2], *others], "blank last"
    assert said["rising"] == [first[4], first[1], first[0], first[3], first[2], *others]
    assert said["again"] == said["grouped"]
    assert (said["address"], said["sorted"]) == ("#sort=R%401&order=descending", "descending")
    assert "metrix-bench trial small.yaml" in said["detail"]
    assert said["charts"] == 2
    assert (said["found"], said["count"]) == (["contrastive+input"], "1 of 6 rows")
    sheet, csv_name, held, _, tex, tex_name = said["files"]
    assert (csv_name, tex_name) == ("leaderboard.csv", "leaderboard.tex")
    assert [line.split(",")[4:8] for line in sheet.splitlines()[1:]] == [
        ["contrastive+input", "contrastive", "input", m] for m in ("R@1", "MAP@R")
    ]
    assert json.loads(held)["rows"][0]["difference"] == pytest.approx(2.0)
    assert r"+ Metrix, input & 52.0 & {\scriptsize $\pm$\,26.2} & {\scriptsize +2.0} &" in tex
    assert said["nothing"] == []
    assert (said["faceted"], said["link"]) == (["pixels"], "#level=floor")


def test_an_address_brings_its_view_back_and_figures_are_drawn(browse, judged):
    said = browse(
        web.render(judged),
        """
        const shown = [...document.querySelectorAll("tr.row")].map(line => line.querySelector(".label").textContent);
        await new Promise(done => setTimeout(done, 300));
        const figures = [...document.querySelectorAll(".figures figcaption b")].map(one => one.textContent);
        const bold = [...document.querySelectorAll("td.best .num")].map(one => one.textContent);
        const daggers = [...document.querySelectorAll(".dagger")].filter(one => one.textContent).length;
        return { shown, figures, bold, theme: document.documentElement.dataset.theme, daggers };
        """,
        "#level=input%7Cfeature&sort=R%401&order=ascending&theme=dark",
    )
    assert said["shown"] == ["contrastive+input", "contrastive+feature"]
    assert said["figures"] == [
        *("Metrix minus baseline", "Loss × level", "Score against training cost", "Recall at K", "Learning curves"),
        "Validation against test",
    ]
    assert (said["bold"], said["theme"], said["daggers"]) == (["62.0", "31.0", "62.0", "31.0"], "dark", 4)
