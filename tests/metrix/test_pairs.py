"""Which pairs are mixed and how λ is drawn."""

import pytest
import torch

import baselines
from baselines.weights import Weights, log_mask
from metrix import Metrix, refusal
from metrix.pairs import (
    PAIRS,
    Chosen,
    draw_lambda,
    draw_type,
    eligible,
    in_mixed_sets,
    keep_hardest,
    keep_one_partner,
    keep_random,
)

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [0.001, 0.2, 2.0, 30.0])
def test_lambda_is_beta_distributed(alpha):
    """Beta(α, α) has mean ½ and variance 1/(4(2α + 1)), down to an α whose gamma variables underflow."""
    values = draw_lambda(alpha, (20000,), generator())
    assert values.mean().item() == pytest.approx(0.5, abs=0.02)
    assert values.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert ((values >= 0) & (values <= 1)).all()


def test_alternate_tosses_a_fair_coin_for_every_loss():
    coin, other = generator(), generator()
    drawn = [draw_type("alternate", ("pos-neg", "anc-neg"), coin) for _ in range(400)]
    assert 160 < drawn.count("pos-neg") < 240
    assert {draw_type("alternate", ("pos-neg",), other) for _ in range(400)} == {"pos-neg"}
    assert torch.equal(coin.get_state(), other.get_state())


@pytest.mark.parametrize(("pairs", "proxies"), [(p, n) for p in PAIRS for n in (None, 3) if (p, n) != ("anc-neg", 3)])
def test_eligible_pairs_are_those_that_some_anchor_uses(pairs, proxies):
    first, second = torch.ones(6, 6).nonzero(as_tuple=True)
    anchors = LABELS if proxies is None else torch.arange(3)
    used = in_mixed_sets(pairs, first, second, LABELS, anchors, examples=proxies is None)
    used = used & (first != second) if pairs in ("pos-pos", "neg-neg") else used
    assert torch.equal(eligible(pairs, LABELS, "candidates", proxies), used.any(0).view(6, 6))


def test_hardest_takes_the_lower_index_of_equals():
    similarities = torch.tensor([[1.0, 0.5, 0.5, 0.9], [0.5, 1.0, 0.2, 0.1]])
    other = torch.tensor([[False, True, True, False], [True, False, True, True]])
    kept = keep_hardest(other, similarities, 1)
    assert (kept.first.tolist(), kept.second.tolist()) == ([0, 1], [1, 0])


def test_hardest_keeps_the_order_of_columns_and_all_of_a_row_with_fewer():
    similarities = torch.tensor([[0.1, 0.2, 0.9, 0.7], [0.0, 0.0, 0.0, 0.0], [0.3, 0.8, 0.5, 0.4]])
    other = torch.tensor([[False, True, True, True], [False] * 4, [True, False, False, False]])
    kept = keep_hardest(other, similarities, 2)
    assert (kept.first.tolist(), kept.second.tolist()) == ([0, 0, 2], [2, 3, 0])
    assert keep_hardest(other, similarities, 9).mask(similarities).tolist() == other.tolist()


def test_random_subsets_have_their_size_and_are_uniform():
    mask = eligible("pos-neg", LABELS, "candidates")
    counts = torch.zeros(6, 6)
    random = generator()
    for _ in range(600):
        kept = keep_random(Chosen.of(mask), 4, random).mask(counts)
        assert kept.sum() == 4
        counts += kept
    expected = 600 * 4 / mask.sum()
    assert (counts[~mask] == 0).all()
    assert ((counts[mask] - expected).abs() < 5 * expected.sqrt()).all()
    assert torch.equal(keep_one_partner(mask, random).sum(1), mask.any(1).long())


def test_max_mixed_is_drawn_from_the_generator_and_shared_by_all_anchors():
    z = torch.randn(6, 4, generator=generator())
    loss = baselines.create("multi_similarity")
    values = [
        Metrix(loss, max_mixed=3, generator=generator(seed)).mixed_loss(z, LABELS, pairs="pos-neg", lam=0.5).item()
        for seed in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]


def test_metrix_moves_no_other_random_number():
    z = torch.randn(6, 4)
    before = torch.random.get_rng_state()
    criterion = Metrix(baselines.create("contrastive"), lambda_per="example", max_mixed=7)
    assert len({criterion(z, LABELS).item() for _ in range(5)}) == 5
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_mixed_pair_has_a_gradient():
    """∂ℓ̃(a)/∂s(a,v) is nowhere zero among the members and zero elsewhere."""
    members = torch.tensor([[True] * 5 + [False]] * 2)
    for name in (
        "contrastive",
        "multi_similarity",
        "binomial_deviance",
        "lifted_structure",
        "circle",
        "proxy_anchor",
    ):
        s = torch.linspace(-0.6, 0.9, 12, dtype=torch.float64).view(2, 6).requires_grad_()
        loss = baselines.create(name, num_classes=2, dim=2)
        loss.formula(s, *Weights.of_label(log_mask(members, s.dtype), 0.4, s.shape)).sum().backward()
        assert torch.equal(s.grad != 0, members), name


@pytest.mark.parametrize(
    ("loss", "options", "words"),
    [
        ("triplet", {}, "triplet has no Metrix form: each of its terms is a hinge"),
        ("supcon", {"at": "feature"}, "supcon has no Metrix form"),
        ("nca", {"pairs": "neg-neg"}, "nca refuses pairs='neg-neg': its mixed examples are anchors"),
        (
            "circle",
            {"pairs": "pos-pos"},
            "circle refuses pairs='pos-pos': all its mixed examples",
        ),
        ("proxy_anchor", {"at": "input", "pairs": "anc-neg"}, "proxy_anchor has pairs='anc-neg' at='embedding' only"),
        ("contrastive", {"pairs": "neg-neg", "hardest": 2}, "hardest=2"),
        ("contrastive", {"at": "feature", "stage": "x", "stages": ("a", "b")}, "no stage 'x' in this network"),
        ("contrastive", {"at": "feature", "stage": "a", "stages": ("a", "b"), "hardest": 3}, "drawn at random"),
    ],
)
def test_refusals_give_the_reason(loss, options, words):
    assert words in refusal(loss, **options)
    stages = options.pop("stages", None)
    if stages is None:
        with pytest.raises(ValueError, match=loss if "hardest" not in options else "hardest"):
            Metrix(baselines.create(loss, num_classes=2, dim=2), **options)


def test_every_refusal_has_a_reason_and_everything_else_runs():
    z = torch.randn(6, 4, generator=generator())
    for name in baselines.names():
        loss = baselines.create(name, num_classes=3, dim=4)
        for pairs in (*PAIRS, "alternate"):
            if refusal(name, pairs=pairs) is None:
                assert Metrix(loss, pairs=pairs)(z, LABELS).isfinite()
            else:
                with pytest.raises(ValueError, match=name):
                    Metrix(loss, pairs=pairs)
    with pytest.raises(ValueError, match="did you mean 'triplet'"):
        refusal("triplets")
