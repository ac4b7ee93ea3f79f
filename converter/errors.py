"""The errors that a user can meet, each with the exit code of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converter.free_names import printable_name


class PortError(Exception):
    """Base of every error that the commands show as one message.

    Attributes:
        exit_code: The process exit code: 1 a difference was found, 2 wrong usage, 3 unreadable, corrupt
            or foreign input, 4 a requirement is missing.
    """

    exit_code = 1


class DifferenceError(PortError):
    """Two things differ that must be the same (exit code 1)."""

    exit_code = 1


class UsageError(PortError):
    """The request cannot be carried out, for example because the output exists (exit code 2)."""

    exit_code = 2


class SourceError(PortError):
    """The input is unreadable, corrupt or not this network (exit code 3).

    Args:
        path: The file or folder at fault.
        problem: What is wrong, a clause without a full stop.
        tensor: The tensor at fault, if there is one.
        next_step: Advice to the user, a clause without a full stop.

    Attributes:
        statement: The message without the path.
    """

    exit_code = 3

    def __init__(
        self, path: Path | str, problem: str, *, tensor: str | None = None, next_step: str | None = None
    ) -> None:
        self.path = Path(path)
        self.tensor = tensor
        where = "" if tensor is None else f"tensor {tensor!r}: "
        self.statement = where + problem + "." + (f" {next_step}." if next_step else "")
        super().__init__(f"{printable_name(path)}: {self.statement}")

    def __reduce__(self) -> Any:
        """Let another process send it: Python would call the class with the message alone."""
        return self.__class__.__new__, (self.__class__, *self.args), self.__dict__


class RequirementError(PortError):
    """A requirement is missing, such as a package, the network or time of the processor (exit code 4)."""

    exit_code = 4
