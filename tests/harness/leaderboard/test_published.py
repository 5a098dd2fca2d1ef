import pytest

from harness.leaderboard import published


def test_every_published_number_is_read_with_its_source():
    rows = published.load()
    assert sum(len(row.values) for row in rows) == 170
    assert all(row.key in published.entries() for row in rows)
    row = next(r for r in rows if (r.dataset, r.arm, r.key) == ("cub200", "contrastive+feature", "metrix_readme"))
    assert row.values == {"R@1": 0.674, "R@2": 0.779, "R@4": 0.857}
    assert row.backbone == "ResNet-50"


def test_a_row_fits_its_dataset_network_and_loss():
    row = published.load()[0]
    assert row.fits(("cub200", "resnet50"), {"contrastive[margin=0.3]"})
    assert not row.fits(("cub200", "resnet18"), {"contrastive"})
    assert not row.fits(("cars196", "resnet50"), {"contrastive"})
    assert not row.fits(("cub200", "resnet50"), {"triplet"})


def test_the_bibliography_holds_what_is_cited():
    text = published.bibliography({"proxy_anchor_readme"})
    assert text.startswith("@misc{proxy_anchor_readme,\n  author = {Kim, Sungyeon and")
    assert text.count("@misc") == 1
    assert "source" not in text


def test_a_broken_line_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "published.bib").touch()
    (tmp_path / "published.csv").write_text(
        "source,dataset,backbone,dim,loss,mix,metric,value\na,b,c,1,d,e,R@1,high\n"
    )
    with pytest.raises(ValueError, match=r"published\.csv, line 2"):
        published.load(tmp_path)
    (tmp_path / "published.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"published\.csv"):
        published.load(tmp_path)
