"""Datasets, their splits and their images: from a user's files to tensors."""
