"""The nearest neighbours of every embedding among the others, by exact search."""

import numpy as np
import torch

BLOCK_BYTES = 64 * 2**20  # of similarities at a time


def nearest(embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest others of each row and their cosine similarities, both (n, k), the nearest first.

    embeddings: (n, d) unit vectors, float32. A row is no neighbour of itself; its copies are. Equally near rows of
    those returned are in the order of their numbers.

    Raises ValueError unless 1 ≤ k < n.

    >>> nearest(np.eye(2, dtype=np.float32)[[0, 1, 1]], 1)[0].ravel()
    array([1, 2, 1])
    """
    if not 1 <= k < len(embeddings):
        raise ValueError(f"k = {k}, expected 1 to {len(embeddings) - 1}, the number of others")
    vectors = torch.as_tensor(embeddings)
    numbers, similarities = [], []
    rows = max(1, BLOCK_BYTES // (4 * len(vectors)))
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows] @ vectors.T
        own = torch.arange(len(block))
        block[own, start + own] = -torch.inf
        found = block.topk(k, dim=1).indices.sort(dim=1).values
        values, order = block.gather(1, found).sort(dim=1, descending=True, stable=True)
        numbers.append(found.gather(1, order))
        similarities.append(values)
    return torch.cat(numbers).numpy(), torch.cat(similarities).numpy()
