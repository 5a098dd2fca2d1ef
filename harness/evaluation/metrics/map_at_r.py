"""MAP@R: average precision over the R nearest, R the number of the query's positives."""

import numpy as np

TITLE = "MAP@R"
DEPTH = "relevant"


def map_at_r(ranks: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Return the mean over the first R ranks of the precision at each rank of a positive: (q,) float64 in [0, 1].

    Musgrave et al. 2020 (A Metric Learning Reality Check, eq. 1): 1/R Σ_{i=1..R} P(i), with P(i) the precision at i
    if the i-th neighbour is a positive, else 0. The positive at ranks[j] is the (j+1)-th, so
    P(ranks[j]) = (j+1) / ranks[j].

    >>> ranks = np.array([[1, 3, 9], [2, 3, 4]])
    >>> map_at_r(ranks, np.array([3, 3])).round(4)
    array([0.5556, 0.3889])
    """
    within = ranks <= relevant[:, None]
    precision = np.arange(1, ranks.shape[1] + 1) / ranks
    return np.where(within, precision, 0.0).sum(axis=1) / relevant
