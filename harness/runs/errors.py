"""Errors of run folders that their users can fix."""

from harness.errors import UserError


class RunError(UserError):
    """A run folder that cannot be used, with the reason and the way out in its message."""


class StorageError(RunError):
    """Storage that had no room or stayed away for longer than patience lasts; what it holds is whole."""


class Vanished(OSError):
    """A run folder that is not there, or is another one than it was."""
