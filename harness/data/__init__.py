"""Datasets, their splits and their images, from the files of a user to tensors."""
