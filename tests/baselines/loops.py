"""The losses once more, as slow and literal as they can be written: the oracle of the tests.

Nothing here knows of the code under test. A labelled set is a list of (similarity, label), label in [0, 1]; each
formula returns the loss of one anchor from its set, or None where it is undefined.
"""

from math import exp, log

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


FORMULAS = {"contrastive": contrastive, "multi_similarity": multi_similarity}


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
    lam = lam if callable(lam) else (lambda i, j, value=lam: value)

    def labelled(anchor, own, c):
        result = []
        for i, j in mixed_set(anchor, own, pairs, labels, c):
            if chosen is not None and not chosen(i, j):
                continue
            first = anchor if i is None else z[i]
            v = lam(i, j) * first + (1 - lam(i, j)) * z[j]
            v = unit(v) if renormalize else v
            result.append((anchor @ v, {"pos-pos": 1.0, "neg-neg": 0.0}.get(pairs, lam(i, j))))
        return result

    if name == "proxy_anchor":
        sets = [labelled(w, None, c) for c, w in enumerate(unit(proxies))]
        terms = [sum(proxy_anchor_terms(v, **parameters)) for v in sets if v]
        return sum(terms) / max(1, len(terms))
    sets = [labelled(z[a], a, labels[a]) for a in range(n)]
    return sum(FORMULAS[name](v, **parameters) or 0.0 for v in sets if v) / n
