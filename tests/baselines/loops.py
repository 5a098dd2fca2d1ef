"""The losses once more, as slow and literal as they can be written: the oracle of the tests.

Nothing here knows of the code under test. A labelled set is a list of (similarity, label), label in [0, 1]; each
formula returns the loss of one anchor from its set, or None where it is undefined.
"""

from math import acos, cos, exp, log, pi, sin, sqrt, tanh
from typing import Any

import numpy as np


def contrastive(labelled, margin=0.5, reduction="mean"):
    attract = sum(-y * s for s, y in labelled)
    repel = sum((1 - y) * max(0.0, s - margin) for s, y in labelled)
    if reduction == "sum":
        return attract + repel
    positives = sum(1 for s, y in labelled if y > 0)
    active = sum(1 for s, y in labelled if y == 0 and s > margin) + sum(1 for s, y in labelled if 0 < y < 1)
    return attract / max(1, positives) + repel / max(1, active)


def multi_similarity(labelled, beta=18.0, gamma=75.0, margin=0.77):
    attract = sum(y * exp(-beta * (s - margin)) for s, y in labelled)
    repel = sum((1 - y) * exp(gamma * (s - margin)) for s, y in labelled)
    return log(1 + attract) / beta + log(1 + repel) / gamma


def lifted_structure(labelled, margin=1.0):
    farthest = sum(y * exp(-s) for s, y in labelled)
    nearest = sum((1 - y) * exp(s + margin) for s, y in labelled)
    return max(0.0, log(farthest) + log(nearest)) if farthest > 0 and nearest > 0 else None


def binomial_deviance(labelled, beta=2.0, gamma=40.0, margin=0.5):
    attract = [y * log(1 + exp(-beta * (s - margin))) for s, y in labelled if y > 0]
    repel = [(1 - y) * log(1 + exp(gamma * (s - margin))) for s, y in labelled if y < 1]
    return sum(attract) / max(1, len(attract)) + sum(repel) / max(1, len(repel))


def circle(labelled, margin=0.4, gamma=80.0, weighted_at=None):
    """`weighted_at`: the similarities that the weights α are computed from, which the gradient takes as constants."""
    at = [s for s, _ in labelled] if weighted_at is None else weighted_at
    near = sum(
        y * exp(-gamma * max(0.0, 1 + margin - t) * (s - 1 + margin)) for (s, y), t in zip(labelled, at, strict=True)
    )
    far = sum(
        (1 - y) * exp(gamma * max(0.0, t + margin) * (s - margin)) for (s, y), t in zip(labelled, at, strict=True)
    )
    return log(1 + near * far)


def nca(labelled, temperature=0.1):
    own = sum(y * exp(s / temperature) for s, y in labelled)
    return -log(own / sum(exp(s / temperature) for s, _ in labelled)) if own > 0 else None


def supcon(labelled, temperature=0.1):
    everyone = sum(exp(s / temperature) for s, _ in labelled)
    own = [-log(exp(s / temperature) / everyone) for s, y in labelled if y == 1]
    return sum(own) / len(own) if own else None


def proxy_nca(labelled):
    others = sum((1 - y) * exp(2 * s) for s, y in labelled)
    return -log(sum(y * exp(2 * s) for s, y in labelled) / others)


def proxy_nca_pp(labelled, temperature=1 / 9):
    return nca(labelled, temperature / 2)


def norm_softmax(labelled, scale=20.0):
    return nca(labelled, 1 / scale)


def cosface(labelled, margin=0.35, scale=64.0):
    return nca([(s - margin * y, y) for s, y in labelled], 1 / scale)


def arcface(labelled, margin=0.5, scale=64.0):
    def enlarged(s):
        angle = acos(s)
        return cos(angle + margin) if angle < pi - margin else s - margin * sin(margin)

    return nca([(enlarged(s) if y == 1 else s, y) for s, y in labelled], 1 / scale)


def soft_triple(labelled, scale=20.0, gamma=0.1, delta=0.01):
    """The similarities of a class are those of its centres."""
    own = everyone = 0.0
    for centres, y in labelled:
        chances = [exp(s / gamma) for s in centres]
        nearest = sum(c * s for c, s in zip(chances, centres, strict=True)) / sum(chances)
        own += y * exp(scale * (nearest - delta))
        everyone += exp(scale * (nearest - delta)) if y > 0 else exp(scale * nearest)
    return -log(own / everyone)


FORMULAS = {
    f.__name__: f
    for f in (
        contrastive,
        multi_similarity,
        lifted_structure,
        binomial_deviance,
        circle,
        nca,
        supcon,
        proxy_nca,
        proxy_nca_pp,
        norm_softmax,
        cosface,
        arcface,
        soft_triple,
    )
}
WITH_CLASSES = ("proxy_nca", "proxy_nca_pp", "norm_softmax", "cosface", "arcface", "soft_triple")


def soft_triple_regulariser(proxies, tau=0.2):
    total, (classes, k, _) = 0.0, proxies.shape
    for c in range(classes):
        for t in range(k):
            for u in range(t + 1, k):
                total += sqrt(2 + 1e-5 - 2 * proxies[c, t] @ proxies[c, u])
    return tau / (classes * k * (k - 1)) * total


def triplet(z, labels, margin=0.1, mining="all"):
    n, terms = len(z), []
    for a in range(n):
        for p in range(n):
            if p == a or labels[p] != labels[a]:
                continue
            negatives = [z[a] @ z[x] for x in range(n) if labels[x] != labels[a]]
            near = z[a] @ z[p]
            if mining == "hard":
                negatives = [max(negatives)] if negatives else []
            if mining == "semihard":
                negatives = [s for s in negatives if near - margin < s < near]
            terms += [s - near + margin for s in negatives]
    active = [t for t in terms if t > 0]
    return sum(active) / max(1, len(active))


def margin_loss(z, labels, margin=0.2, beta=1.2):
    terms = []
    for a in range(len(z)):
        for x in range(len(z)):
            distance = sqrt(max(0.0, 2 - 2 * (z[a] @ z[x])))
            if x != a:
                terms.append(distance - beta + margin if labels[x] == labels[a] else beta - distance + margin)
    active = [t for t in terms if t > 0]
    return sum(active) / max(1, len(active))


def soft_rank(s, i, candidates, temperature):
    """1 + Σ σ((s_j − s_i) / temperature) over the other candidates j; σ(x) = (1 + tanh(x/2)) / 2."""
    return 1 + sum((1 + tanh((s[j] - s[i]) / temperature / 2)) / 2 for j in candidates if j != i)


def smooth_ap(z, labels, temperature=0.01, include_query=False):
    losses = []
    for a in range(len(z)):
        s = z @ z[a]
        candidates = [x for x in range(len(z)) if x != a or include_query]
        own = [x for x in candidates if labels[x] == labels[a]]
        ratios = [soft_rank(s, i, own, temperature) / soft_rank(s, i, candidates, temperature) for i in own]
        losses.append(1 - sum(ratios) / len(own) if own else 0.0)
    return sum(losses) / len(losses)


def recall_at_k(z, labels, temperature=0.01, k_temperature=1.0, ks=(1, 2, 4, 8, 16), include_query=False):
    losses = []
    for a in range(len(z)):
        s = z @ z[a]
        candidates = [x for x in range(len(z)) if x != a or include_query]
        own = [x for x in range(len(z)) if x != a and labels[x] == labels[a]]
        ranks = [soft_rank(s, i, candidates, temperature) for i in own]
        recalls = []
        for k in (min(k, len(z)) for k in ks):
            hits = sum((1 + tanh((k - rank) / k_temperature / 2)) / 2 for rank in ranks)
            recalls.append(min(k, hits) / min(k, len(own)) if own else 1.0)
        losses.append(1 - sum(recalls) / len(recalls))
    return sum(losses) / len(losses)


OF_BATCHES = {"triplet": triplet, "margin": margin_loss, "smooth_ap": smooth_ap, "recall_at_k": recall_at_k}


def proxy_anchor_terms(labelled, alpha=32.0, delta=0.1):
    attract = log(1 + sum(y * exp(-alpha * (s - delta)) for s, y in labelled))
    repel = log(1 + sum((1 - y) * exp(alpha * (s + delta)) for s, y in labelled))
    return attract, repel


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def clean(name, embeddings, labels, proxies=None, **parameters):
    """The loss of a clean batch."""
    z, n = unit(embeddings), len(labels)
    if name == "proxy_anchor":
        w = unit(proxies)
        terms = [
            proxy_anchor_terms([(w[c] @ z[x], float(labels[x] == c)) for x in range(n)], **parameters)
            for c in range(len(w))
        ]
        with_positives = len(set(labels))
        return sum(t[0] for t in terms) / with_positives + sum(t[1] for t in terms) / len(w)
    if name in OF_BATCHES:
        return OF_BATCHES[name](z, labels, **parameters)
    if name in WITH_CLASSES:
        w = unit(proxies)
        losses = [
            FORMULAS[name]([(w[c] @ z[a], float(c == labels[a])) for c in range(len(w))]) or 0.0 for a in range(n)
        ]
        return sum(losses) / n + (soft_triple_regulariser(w) if name == "soft_triple" else 0.0)
    losses = []
    for a in range(n):
        labelled = [(z[a] @ z[x], float(labels[x] == labels[a])) for x in range(n) if x != a]
        losses.append(FORMULAS[name](labelled, **parameters) or 0.0)
    return sum(losses) / n


def mixed_set(anchor, own, pairs, labels, c):
    """The mixed examples (i, j) of an anchor of class c; `own` is its place in the batch, None for a proxy."""
    everyone = [x for x in range(len(labels)) if x != own]
    positives = [x for x in everyone if labels[x] == c]
    negatives = [x for x in everyone if labels[x] != c]
    if pairs == "anc-neg":
        return [(own, j) for j in negatives]
    first, second = {
        "pos-neg": (positives, negatives),
        "pos-pos": (positives, positives),
        "neg-neg": (negatives, negatives),
    }[pairs]
    return [(i, j) for i in first for j in second if i != j]


def mixed(name, embeddings, labels, pairs, lam, renormalize=True, proxies=None, chosen=None, **parameters):
    """The mixed loss of a batch. lam(i, j) is a number; chosen(i, j) says whether the pair is mixed."""
    z, n = unit(embeddings), len(labels)
    weight: Any = lam if callable(lam) else lambda i, j: lam

    def mix(i, j, first):
        v = weight(i, j) * first + (1 - weight(i, j)) * z[j]
        return unit(v) if renormalize else v

    def wanted(i, j):
        return chosen is None or chosen(i, j)

    def labelled(anchor, own, c):
        """Where the first of a pair is the proxy itself, its place is the class."""
        result = []
        for i, j in mixed_set(anchor, own, pairs, labels, c):
            place = c if i is None else i
            if wanted(place, j):
                y = {"pos-pos": 1.0, "neg-neg": 0.0}.get(pairs, weight(place, j))
                result.append((anchor @ mix(place, j, anchor if i is None else z[i]), y))
        return result

    if name == "nca" or name in WITH_CLASSES:
        losses = []
        for i in range(n):
            for j in range(n):
                if labels[i] == labels[j] or not wanted(i, j):
                    continue
                v, w = mix(i, j, z[i]), weight(i, j)
                if name == "nca":
                    candidates = [(z[x], labels[x]) for x in range(n) if x not in (i, j)]
                else:
                    candidates = [(x, c) for c, x in enumerate(unit(proxies))]
                labelled_set = [(x @ v, w * (c == labels[i]) + (1 - w) * (c == labels[j])) for x, c in candidates]
                losses.append(FORMULAS[name](labelled_set, **parameters) or 0.0)
        return sum(losses) / max(1, len(losses))
    if name == "proxy_anchor":
        sets = [labelled(w, None, c) for c, w in enumerate(unit(proxies))]
        terms = [sum(proxy_anchor_terms(v, **parameters)) for v in sets if v]
        return sum(terms) / max(1, len(terms))
    sets = [labelled(z[a], a, labels[a]) for a in range(n)]
    return sum(FORMULAS[name](v, **parameters) or 0.0 for v in sets if v) / n


NAMES = {*FORMULAS, *OF_BATCHES, "proxy_anchor"}
"""The losses that have loops here: all of the project."""
