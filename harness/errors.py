"""The parent of every error that a user can mend."""


class UserError(ValueError):
    """Something that the user can mend: the message says what is wrong and what to do, in their words.

    The command line prints it as one sentence; whatever else is raised is a fault of the program.
    """
