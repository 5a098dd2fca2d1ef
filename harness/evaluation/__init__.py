"""Retrieval metrics, computed exactly, and what else an embedding says of itself."""

NOISE = 1e-9  # two means closer than this are equal: the least true difference is 1 / (queries · seeds), above 1e-8
