import pytest

import baselines
from harness.leaderboard import published


def test_every_published_number_is_read_with_its_source():
    rows = published.load()
    assert sum(len(row.values) for row in rows) == 1219
    assert all(row.key in published.entries() for row in rows)
    row = next(r for r in rows if (r.dataset, r.arm, r.key) == ("cub200", "contrastive+feature", "metrix_readme"))
    assert row.values == {"R@1": 0.674, "R@2": 0.779, "R@4": 0.857}
    assert row.backbone == "ResNet-50"


def test_a_row_fits_its_dataset_network_dimension_and_loss():
    row = published.load()[0]
    assert row.fits(("cub200", "resnet50"), 512, {"contrastive[margin=0.3]"})
    assert row.fits(("cub200", "resnet50.tv_in1k"), 512, {"contrastive"})
    assert not row.fits(("cub200", "resnet18"), 512, {"contrastive"})
    assert not row.fits(("cars196", "resnet50"), 512, {"contrastive"})
    assert not row.fits(("cub200", "resnet50"), 512, {"triplet"})
    assert not row.fits(("cub200", "resnet50"), 128, {"contrastive"})


def test_a_row_of_unknown_dimension_fits_nowhere():
    rows = [row for row in published.load() if row.dim is None]
    assert sum(len(row.values) for row in rows) == 38
    assert not any(row.fits((row.dataset, row.backbone), dim, {row.loss}) for row in rows for dim in (None, 512))


def r1(arm, backbone="ResNet-50", dim=512, source=""):
    """R@1 of an arm in percent on cub200, cars196, sop and inshop."""
    found = {
        row.dataset: round(100 * row.values["R@1"], 2)
        for row in published.load()
        if (row.arm, row.backbone, row.dim) == (arm, backbone, dim) and source in row.source
    }
    return [found.get(dataset) for dataset in ("cub200", "cars196", "sop", "inshop")]


def test_other_ways_to_mix_are_named_as_ours():
    assert r1("contrastive+i_mix") == [65.8, 82.0, 75.2, 87.1]
    assert r1("contrastive+mochi") == [65.2, 82.5, 75.8, 87.2]
    assert r1("contrastive+xbm", dim=128) == [None, None, 80.6, 91.3]
    assert r1("contrastive+xbm", "BN-Inception") == [65.8, 82.0, 79.5, 89.9]
    assert r1("recall_at_k") == [None, 80.7, None, None]
    assert r1("proxy_anchor+proxy_synthesis", "BN-Inception") == [69.2, 86.9, 79.8, 91.9]
    assert r1("norm_softmax+proxy_synthesis", "BN-Inception", source="table") == [66.0, 84.7, 79.6, 91.5]
    assert r1("norm_softmax+memvir", "BN-Inception") == [67.3, 86.8, 79.6, None]
    assert r1("multi_similarity+embedding_expansion", "GoogLeNet") == [57.4, 75.8, 78.1, None]


def test_losses_defined_otherwise_have_a_name_of_their_own():
    rows = published.load()
    names = {row.loss for row in rows}
    assert names & set(baselines.names()) == {
        *("arcface", "circle", "contrastive", "cosface", "margin", "multi_similarity", "norm_softmax"),
        *("proxy_anchor", "proxy_nca_pp", "recall_at_k", "soft_triple"),
    }
    assert {name for name in names if name.endswith(" (theirs)")} == {"proxy_nca (theirs)", "triplet (theirs)"}
    assert not any("+" in name for name in names)


def test_what_was_not_read_in_the_publication_says_so():
    named = {row.source: (row.short, published.entries()[row.key].get("note", "")) for row in published.load()}
    for source, (short, note) in named.items():
        assert ("second hand" in source) == ("second hand" in short) == ("Second hand" in note)
        assert ("reproduction" in source) == ("reproduction" in short) == ("reproduction" in note)
    assert sum("second hand" in source for source in named) == 6


def test_what_is_known_of_the_protocol_is_kept():
    about = {(row.key, row.arm): row.about for row in published.load()}
    assert about["metrix_readme", "contrastive"] == "224 px, batches of 100"
    assert about["sfora_reproduction", "hist"] == "6 seeds"
    assert about["hier_table", "norm_softmax"] == ""


def test_sources_with_one_title_are_one_publication():
    source = {row.key: row.source for row in published.load()}
    titles = {key: published.publication(source[key]) for key in source}
    assert titles["metrix_readme"] == titles["metrix_slides"]
    assert titles["proxy_synthesis_table"] == titles["proxy_synthesis_readme"]
    assert len(source) - len(set(titles.values())) == 2
    assert published.publication("unknown") == "unknown"


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
