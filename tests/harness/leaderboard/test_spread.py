import pytest

from harness.errors import UserError
from harness.leaderboard import published
from harness.leaderboard.published import spread


def row(source, loss="contrastive", level="baseline", dim=512, about="", **values):
    scores = {"R@1" if name == "r1" else name: value for name, value in values.items()}
    return published.Published(source, "", source, "cub200", "ResNet-50", dim, loss, level, about, scores)


def test_a_cell_has_the_lowest_and_highest_number_and_their_sources():
    (cell,) = spread.cells([row("one", r1=0.7), row("two", r1=0.6525, about="6 seeds"), row("three", r1=0.66)])
    assert (cell.spread, cell.publications, cell.disagrees) == (4.75, 3, True)
    place = ("cub200", "ResNet-50", 512, "contrastive", "R@1")
    assert cell.row == (*place, "65.25", "70.0", "4.75", 3, "two 65.25 (6 seeds); three 66.0; one 70.0")


def test_dimensions_losses_levels_and_metrics_are_cells_apart():
    rows = [row("one", r1=0.7, MAP=0.3), row("two", dim=128, r1=0.6), row("two", dim=None, r1=0.5)]
    rows += [row("two", level="xbm", r1=0.6), row("two", loss="margin", r1=0.6)]
    cells = spread.cells(rows)
    assert [(cell.dim, cell.arm, cell.metric) for cell in cells] == [
        (None, "contrastive", "R@1"),
        (128, "contrastive", "R@1"),
        (512, "contrastive", "MAP"),
        (512, "contrastive", "R@1"),
        (512, "contrastive+xbm", "R@1"),
        (512, "margin", "R@1"),
    ]
    assert not any(cell.disagrees for cell in cells)
    assert cells[0].row[7] == "", "one number has no spread"


@pytest.mark.parametrize(("other", "disagrees"), [(0.7005, False), (0.7006, True), (0.6995, False), (0.6994, True)])
def test_rounding_is_no_disagreement(other, disagrees):
    assert spread.cells([row("one", r1=0.7), row("two", r1=other)])[0].disagrees == disagrees


def test_sources_of_one_publication_count_once():
    readme, slides = "Metrix, official repository README (2024)", "Metrix, official slides"
    (cell,) = cells = spread.cells([row(readme, r1=0.7), row(slides, r1=0.6)])
    assert (cell.publications, cell.spread, cell.disagrees) == (1, 10.0, False)
    assert list(spread.summary(cells)) == ["No two publications give a number for the same thing here."]


def test_the_published_numbers_disagree_in_28_of_49_cells():
    cells = spread.cells(published.load())
    shared = [cell for cell in cells if cell.publications > 1]
    assert (len(cells), len(shared), sum(cell.disagrees for cell in shared)) == (1158, 49, 28)
    several = [cell for cell in cells if len(cell.numbers) > 1]
    assert (len(several), sum(cell.spread > 0.05 for cell in several)) == (51, 30)
    widest = max(shared, key=lambda cell: cell.spread)
    assert widest.row[3:9] == ("multi_similarity", "R@1", "83.3", "87.8", "4.5", 2)
    assert list(spread.summary(cells)) == [
        "28 of the 49 cells that two or more publications share disagree by more than rounding (0.05 points). "
        "Largest spread: 4.5 points, R@1 of multi_similarity on cars196 with ResNet-50, 512 dimensions.",
        "In 2 more, the sources of a single publication differ.",
    ]


def test_cells_are_chosen_in_any_spelling_and_unknown_names_are_refused():
    cells = spread.cells(published.load())
    chosen = spread.select(cells, dataset="cub200", backbone="resnet50", dim="512", loss="contrastive", metric="r@1")
    assert [cell.arm.partition("+")[2] for cell in chosen] == [
        *("", "embedding", "feature", "i_mix", "idml", "input", "mochi")
    ]
    assert spread.select(cells, loss=None) == cells
    with pytest.raises(
        UserError, match="no loss in published numbers named 'contrastve'; did you mean 'contrastive'"
    ):
        spread.select(cells, loss="contrastve")
    with pytest.raises(UserError, match="no dim in published numbers named '64'; there are: 128, 2048, 384, 512"):
        spread.select(cells, dim="64")
