"""FAIR-11 and FAIR-12: enough seeds, and equal ones on both sides of a difference."""

PLACE = "glyphs/test_resnet"


def test_few_seeds(make_clean, finds):
    for n, lacks in ((1, "an interval"), (2, "an interval"), (3, "bold and dagger"), (4, "bold and dagger")):
        records = [make_clean(seed=seed) for seed in range(n)]
        assert finds(11, records) == [("W", f"FAIR-11 {PLACE} n={n}: printed without {lacks}.")]
    assert finds(11, [make_clean(seed=seed) for seed in range(5)]) == []


def test_few_seeds_of_some_arms(make_clean, finds):
    records = [make_clean(seed=seed) for seed in range(5)] + [make_clean("nca"), make_clean("untrained")]
    assert finds(11, records) == [("W", f"FAIR-11 {PLACE} n=1 (nca): printed without an interval.")]


def test_seeds_that_have_no_partner(make_clean, finds):
    records = [make_clean(seed=seed) for seed in (0, 1, 2)]
    records += [make_clean("contrastive+embedding", seed) for seed in (0, 1, 3)]
    assert finds(12, records) == [
        ("W", f"FAIR-12 {PLACE}/contrastive: baseline has seeds {{0,1,2}}, embedding {{0,1,3}}: using {{0,1}}."),
    ]
    records = [make_clean(), make_clean("contrastive+embedding", 1)]
    assert finds(12, records)[0][1].endswith("baseline has seeds {0}, embedding {1}: no difference.")
    assert finds(12, [make_clean(), make_clean("contrastive+embedding")]) == []
