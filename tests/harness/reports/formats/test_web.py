import json
import re
from decimal import ROUND_HALF_UP, Decimal
from html.parser import HTMLParser

import pytest

from harness.fairness import rules
from harness.leaderboard import published
from harness.leaderboard.compose import board_of
from harness.leaderboard.reproduction import command
from harness.reports import page_data as data
from harness.reports.formats import web
from harness.runs.record import Epoch


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
    board = board_of([make_record(make_trial(), curve=curve, selected_epoch=400)])
    page = data.page_data(board)
    assert len(page["epochs"][0]) == data.MOST_POINTS
    assert (page["epochs"][0][0], page["epochs"][0][-1]) == (1, 400)
    monkeypatch.setattr(data, "MOST_BYTES", 1000)
    assert len(data.page_data(board)["epochs"][0]) == 12


def test_the_command_gives_the_very_trial_or_says_that_it_may_not(make_trial):
    from harness.grid import Grid

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
        *("Level minus baseline", "Loss × level", "Score against training cost", "Recall at K", "Learning curves"),
        "Validation against test",
    ]
    assert (said["bold"], said["theme"], said["daggers"]) == (["62.0", "31.0", "62.0", "31.0"], "dark", 4)


@pytest.fixture
def small_copy(make_trial, make_record):
    """A copy of CUB that is smaller than the standard one: input mixing gains, the feature row does not differ."""
    noise = (0.000, 0.002, -0.001, 0.001, -0.002)
    records = []
    for arm, mean, own in (
        ("contrastive", 0.6, 0),
        ("contrastive+input", 0.62, 1),
        ("contrastive+feature", 0.6005, 1),
    ):
        for seed in range(5):
            trial = make_trial(arm, seed, dataset="cub200", backbone="resnet50", dim=512)
            options = trial.dataset.model_copy(update={"options": {"allow_nonstandard": True}})
            passes = 2.0 if arm.endswith("input") else 1.0
            record = make_record(trial.model_copy(update={"dataset": options}), mean + own * noise[seed])
            cost = record.cost.model_copy(update={"forward_passes_per_step": passes, "steps": 4})
            records.append(record.model_copy(update={"cost": cost}))
    return board_of(records, findings=rules.over_records(records))


def test_marks_say_their_rule_and_lead_to_it(browse, small_copy):
    said = browse(
        web.render(small_copy),
        """
        const text = one => [...document.querySelectorAll(one)].map(mark => mark.textContent);
        const head = title => [...document.querySelectorAll("[data-sort]")].find(one => one.textContent === title);
        const said = { marks: text("td.name .mark"), chips: text("h2 .chip"), heads: text("[data-sort]") };
        head("R@1").click();
        said.lost = [...document.querySelectorAll("a.rule")].filter(one => !find(one.hash.slice(1))).length;
        said.before = location.hash;
        document.querySelector("td.name a.mark").click();
        said.after = location.hash; said.at = document.activeElement.id; said.opened = text("tr.detail").length;
        for (const toggle of ["fair", "clean"]) {
          document.querySelector(`[data-toggle=${toggle}]`).click();
          said[toggle] = find("count").textContent;
          document.querySelector(`[data-toggle=${toggle}]`).click();
        }
        return said;
        """,
    )
    assert said["marks"] == ["FAIR-07"]
    assert said["chips"] == ["protocol fair, not CUB-200-2011", "FAIR-01", "FAIR-23"]
    assert "peak GB" in said["heads"]
    assert said["lost"] == 0
    assert (said["before"], said["after"]) == ("#sort=R%401&order=descending",) * 2
    assert (said["at"], said["opened"]) == ("FAIR-07", 0)
    assert (said["fair"], said["clean"]) == ("0 of 3 rows", "0 of 3 rows")


def test_rules_that_occur_are_explained_on_the_page_and_no_others(small_copy, board):
    text = web.render(small_copy)
    assert re.findall(r'<dt id="(FAIR-\d\d)"', text) == ["FAIR-01", "FAIR-07", "FAIR-14", "FAIR-23"]
    rule = next(rule for rule in rules.all_rules() if rule.id == "FAIR-07")
    assert rule.title in text
    assert rule.reason in text
    assert "Rank: " in text
    assert "Peak GB: " not in text, "no memory was measured"


def test_figures_scale_by_the_interval_and_count_epochs_in_whole_numbers(browse, small_copy):
    said = browse(
        web.render(small_copy),
        """
        await new Promise(done => setTimeout(done, 300));
        const figure = name => [...document.querySelectorAll("figure")].find(one => one.textContent.includes(name));
        const said = { tiles: [...figure("Loss × level").querySelectorAll("rect")].map(one => one.style.fill) };
        said.legend = figure("Loss × level").querySelector("figcaption").textContent;
        said.epochs = ticks(1, 2, 5, true);
        document.querySelector("tr.row").click();
        const lines = [...document.querySelectorAll("tr.detail figure:last-child polyline.trace")];
        said.colours = [...new Set(lines.map(one => one.style.stroke))];
        said.strengths = new Set(lines.map(one => one.style.strokeOpacity)).size;
        const ends = [...document.querySelectorAll("tr.detail figure:last-child text.end")];
        said.named = ends.map(one => one.textContent);
        const heights = ends.map(one => Number(one.getAttribute("y"))).sort((a, b) => a - b);
        said.apart = heights.slice(1).every((height, i) => height - heights[i] > 9.8);
        const axis = document.querySelectorAll("tr.detail figure:last-child text[text-anchor=middle]");
        said.labels = [...axis].map(one => one.textContent);
        return said;
        """,
    )
    pale, deep = (tile for tile in said["tiles"] if tile.startswith("rgba"))
    assert (pale.split(", ")[-1], deep.split(", ")[-1]) == ("0.08)", "0.68)"), "+0.05 ± 0.2 and +2.0 ± 0.2"
    assert "pale within the 95 % interval" in said["legend"]
    assert said["epochs"] == [1, 2]
    assert said["labels"][:2] == ["1", "2"]
    assert said["colours"] == ["var(--level-0)"]
    assert said["strengths"] == 5
    assert said["named"] == [f"seed {seed}" for seed in range(5)]
    assert said["apart"]


def test_a_phone_shows_the_first_score_and_says_that_the_table_goes_on(browse, make_trial, make_record):
    trials = [
        make_trial(arm, dataset="cub200", backbone="resnet50", dim=512)
        for arm in ("contrastive", "contrastive+input")
    ]
    said = browse(
        web.render(board_of([make_record(trial) for trial in trials], published=published.load())),
        """
        await new Promise(done => setTimeout(done, 300));
        const card = document.querySelector(".card"), hint = document.querySelector(".swipe");
        const cell = place => document.querySelectorAll("tr.row")[1].cells[place].getBoundingClientRect();
        const page = document.documentElement.scrollWidth;
        const said = { width: innerWidth, hint: !hint.hidden, delta: cell(2).right, page };
        card.scrollLeft = 200;
        return { ...said, name: cell(0).left - card.getBoundingClientRect().left };
        """,
        width=375,
    )
    assert said["width"] == 375
    assert said["hint"]
    assert said["delta"] <= 375, "method, score and difference are in sight"
    assert said["page"] <= 375, "the page itself does not scroll sideways"
    assert said["name"] == pytest.approx(1, abs=1), "the first column stays"


def test_lines_of_two_losses_differ_in_colour_and_of_two_levels_in_dash(browse, make_trial, make_record):
    arms = ("contrastive", "contrastive+input", "proxy_anchor")
    records = [
        make_record(make_trial(arm, seed), 0.5 + place / 100) for place, arm in enumerate(arms) for seed in (0, 1)
    ]
    said = browse(
        web.render(board_of(records)),
        """
        await new Promise(done => setTimeout(done, 300));
        const figure = name => [...document.querySelectorAll("figure")].find(one => one.textContent.includes(name));
        const dash = one => one.getAttribute("stroke-dasharray");
        const read = one => [one.querySelector("title").textContent, one.style.stroke, dash(one)];
        const look = name => [...figure(name).querySelectorAll("polyline.trace")].map(read);
        const legend = figure("Recall at K").querySelector(".legend").textContent;
        return { recall: look("Recall at K"), learning: look("Learning curves"), legend };
        """,
    )
    for name in ("recall", "learning"):
        (first, first_colour, solid), (_, second_colour, dashed), (_, other_colour, third) = said[name]
        assert first == "contrastive"
        assert first_colour == second_colour != other_colour
        assert (solid, third) == ("", "")
        assert dashed
    assert said["legend"] == "contrastiveproxy_anchorbaselineinput"
