"""The formats that a report can have, one file each."""
