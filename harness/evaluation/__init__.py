"""Evaluate embeddings: exact retrieval metrics, and measures of the embedding space."""

NOISE = 1e-9  # means closer than this are equal: the smallest true difference is 1 / (queries · seeds), above 1e-8
