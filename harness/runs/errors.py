"""Errors of run folders that their users can fix."""

from harness.errors import UserError


class RunError(UserError):
    """A run folder that cannot be used; the message gives the reason and the way out."""


class StorageError(RunError):
    """Storage that stayed full or unavailable for longer than the longest wait; what it holds is intact."""


class FolderGone(OSError):
    """A run folder that is not there, or is not the one it was."""
