"""The results of a run: records, and the folder or bucket that stores them."""
