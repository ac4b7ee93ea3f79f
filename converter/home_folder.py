"""The user's home folder, which a container or a batch job may lack."""

from __future__ import annotations

import os
from pathlib import Path

from converter.errors import RequirementError
from converter.free_names import printable_name


def home_folder() -> Path | None:
    """Return the home folder; None if HOME is not set and the user id has no name."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def xdg_folder(variable: str) -> Path | None:
    """The folder that a variable such as XDG_CACHE_HOME names; None without one, or if its path is relative.

    The XDG Base Directory Specification has relative paths ignored.

    Raises:
        RequirementError: It begins with a ~, and there is no home folder.
    """
    folder = expand(os.environ.get(variable, ""), variable)
    return folder if folder.is_absolute() else None


def from_home(path: Path | str) -> str:
    """Shorten a path in the user's home folder to one that begins with ~, and make it printable."""
    home = home_folder()
    if home is None or not home.name or not Path(path).is_relative_to(home):  # a home of / has no name
        return printable_name(path)
    return printable_name("~" / Path(path).relative_to(home))


def expand(path: str, variable: str) -> Path:
    """Replace a leading ~ or ~user in the value of an environment variable.

    Raises:
        RequirementError: There is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise RequirementError(
            f"{variable}={path}: there is no home folder for the ~. Set {variable} to a path without it."
        ) from None
