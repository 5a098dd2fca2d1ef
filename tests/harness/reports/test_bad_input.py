"""Whatever a run folder holds, every report is right and legible, and says what is missing."""

import pytest

from harness import reports
from harness.fairness import rules
from harness.leaderboard.compose import board_of
from harness.reports.formats import web

LONG = "contrastive+" + "a_very_long_name_" * 8 + "[with=brackets,and=commas]"
TEXTS = ("markdown", "latex", "comma_separated", "web")


@pytest.fixture
def arm(make_trial, make_record):
    def make(name="contrastive", seeds=(0, 1, 2), score=0.5, **changes):
        return [make_record(make_trial(name, s), score + s / 100, **changes) for s in seeds]

    return make


@pytest.fixture
def boards(arm, make_trial, make_record):
    """Boards of input that is bad in one way each, and words that every format must say of it."""
    other = {"protocol": {"name": "fair", "version": 2}}
    nan = {"test": {"R@1": float("nan"), "MAP@R": 0.3}}
    planned = [make_trial("contrastive+input", s) for s in (0, 1, 2)]
    return {
        "one seed": (arm(seeds=[0]), {}, ["n=1"]),
        "one arm": (arm(), {}, ["contrastive"]),
        "unequal seeds": (arm() + arm("contrastive+input", (0, 1, 3)), {}, ["FAIR-12"]),
        "no baseline": (arm("contrastive+input"), {}, ["not run"]),
        "not run": (arm(), {"planned": [*planned, *(r.trial for r in arm())]}, ["not run yet", "3 of 6 trials"]),
        "nan": (arm() + arm("proxy_anchor", (0, 1)) + arm("proxy_anchor", (2,), **nan), {}, ["not finite"]),
        "two versions": (arm(seeds=[0]) + arm(seeds=[1], **other), {}, ["version"]),
        "long name": ([*arm(), make_record(make_trial("contrastive+input"), 0.4, arm=LONG)], {}, ["brackets"]),
    }


NAMES = ("one seed", "one arm", "unequal seeds", "no baseline", "not run", "nan", "two versions", "long name")


@pytest.mark.parametrize("name", NAMES)
def test_every_format_says_what_is_missing(name, boards):
    records, options, words = boards[name]
    board = board_of(records, findings=rules.over_records(records), **options)
    for form in TEXTS:
        text = reports.find(form).render(board)
        said = text.replace("\\", "").replace("allowbreak{}", "").replace("Contrastive", "contrastive")
        for word in words:
            if form != "comma_separated" or word in ("contrastive", "brackets", "version"):
                assert word in said, f"{form} of {name}"
        assert "NaN" not in text
        assert "nan " not in text


def test_every_page_draws_in_a_browser(browse, boards, arm, awkward):
    """One page of everything bad at once, with 200 arms: all of it is drawn, and nothing is thrown."""
    many = [r for i in range(200) for r in arm(f"contrastive[margin=0.{i:03d}]", (0,)) if i]
    records = {r.id + str(r.protocol): r for rows, _, _ in boards.values() for r in [*rows, *many]}
    said = browse(
        web.render(board_of([*records.values(), *arm("contrastive+embedding", (0,), arm=f"contrastive+{awkward}")])),
        """
        const errors = []; addEventListener("error", event => errors.push(event.message));
        dispatchEvent(new Event("beforeprint"));
        const rows = document.querySelectorAll("tr.row");
        rows.forEach(row => row.click());
        const all = DATA.blocks.reduce((sum, block) => sum + block.rows.length, 0);
        const details = document.querySelectorAll("tr.detail").length;
        const wide = document.body.scrollWidth <= innerWidth, nan = /NaN|undefined/.test(document.body.innerText);
        return { errors, rows: rows.length, all, details, wide, nan };
        """,
    )
    assert (said["errors"], said["rows"], said["details"]) == ([], said["all"], said["all"])
    assert said["rows"] > 200
    assert (said["wide"], said["nan"]) == (True, False)
