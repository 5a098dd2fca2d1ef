"""Recall at K, the usual metric of class-disjoint retrieval."""

import numpy as np

TITLE = "R@{k}"
DEPTH = "best"


def recall_at_k(ranks: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Return whether each query has a positive among its K nearest candidates: (q,) bool.

    Jégou et al. 2011 (Product Quantization for Nearest Neighbor Search, §V), as used in metric learning since Song
    et al. 2016 (Deep Metric Learning via Lifted Structured Feature Embedding): one positive is enough, so R@1 = P@1.

    >>> ranks = np.array([[1, 4], [3, 5]])
    >>> recall_at_k(ranks, np.array([2, 2]), k=2)
    array([ True, False])
    """
    return ranks[:, 0] <= k
