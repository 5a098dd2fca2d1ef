"""R-Precision: the share of positives among the R nearest, R the number of the query's positives."""

import numpy as np

TITLE = "R-Precision"
DEPTH = "relevant"


def r_precision(ranks: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Return the precision at R = the query's number of positives: (q,) float64 in [0, 1].

    Musgrave et al. 2020 (A Metric Learning Reality Check, §3.2), r/R.

    >>> ranks = np.array([[1, 3, 9], [2, 3, 4]])
    >>> r_precision(ranks, np.array([3, 3])).round(4)
    array([0.6667, 0.6667])
    """
    return (ranks <= relevant[:, None]).sum(axis=1) / relevant
