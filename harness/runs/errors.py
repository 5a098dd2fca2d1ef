"""Errors about run folders that the user can fix."""

from harness.errors import UserError


class RunError(UserError):
    """Raised for a run folder that cannot be used; the message gives the reason and a remedy."""


class StorageError(RunError):
    """Raised if storage stays full or unavailable for longer than the longest wait; its content is intact."""


class FolderGone(OSError):
    """Raised for a run folder that has disappeared or been replaced."""
