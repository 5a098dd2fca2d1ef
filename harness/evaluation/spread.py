"""Measure how far embeddings spread, which shows a collapse before the scores do."""

import numpy as np


def spread(embeddings: np.ndarray) -> dict[str, float]:
    """Return {"embedding std", "effective rank"} of embeddings (n, d), each row scaled to length 1.

    The std is that of a coordinate over the rows, averaged (root mean square) over the d coordinates: √(1/d) if
    directions are spread evenly, 0 if all rows are equal. The effective rank is exp(entropy) of the singular values
    divided by their sum, from 1 to min(n, d): Roy & Vetterli 2007 (The Effective Rank), on the matrix as it is, not
    centred, as Garrido et al. 2023 (RankMe).
    """
    rows = np.asarray(embeddings, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    std = float(np.sqrt(rows.var(axis=0).mean()))
    gram = rows.T @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.T
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
    shares = singular[singular > 1e-7 * singular.max()] / singular.sum()
    return {"embedding std": std, "effective rank": float(np.exp(-(shares * np.log(shares)).sum()))}
