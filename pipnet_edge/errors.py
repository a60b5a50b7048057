"""The one error class a user is meant to see."""

from __future__ import annotations

USER_ERROR = 1
CHECK_FAILED = 3


class EdgeError(Exception):
    """Something the user can act on: one line that names what was given and what is allowed.

    `code` is the exit status of the command line: USER_ERROR (1) for bad input, CHECK_FAILED (3) for a broken
    parity, drift or bench limit. Any other exception is a defect of this program and keeps its traceback.
    """

    def __init__(self, message: str, code: int = USER_ERROR) -> None:
        super().__init__(message)
        self.code = code
