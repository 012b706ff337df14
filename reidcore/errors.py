"""What a person can mend: errors, which the command line prints as one message and exits with 2, and warnings."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class ReidError(Exception):
    """Anything that went wrong and that the user can put right; the message says how."""


class RecipeError(ReidError):
    """One or several mistakes in a recipe, each already a complete line of text."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class UnknownComponent(ReidError):
    """A name that no installed plugin offers, or that several offer."""


class ContractError(ReidError):
    """Two parts that do not fit, or a part that breaks the promise of its kind."""


class DataError(ReidError):
    """Images or lists of images that are missing, unreadable or not enough."""


class RunError(ReidError):
    """A run that cannot start, or that had to stop."""


class ReidDeprecationWarning(FutureWarning):
    """A name that still works and will not for ever; the message says what to write instead."""


class ImageWarning(UserWarning):
    """Images that cannot be read and are left out, as the recipe says."""


def first_of(lines: Sequence[str], most: int = 20) -> str:
    """Return the first of many lines, and how many more there are."""
    return "\n".join([*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])])


def os_message(error: OSError, doing: str, path: Path) -> str:
    """Return what the operating system said, as one sentence: `doing` is a verb phrase such as "write"."""
    return f"cannot {doing} {path}: {error.strerror or error}"


def offer(name: str, offered: Sequence[str]) -> str:
    """Return the end of a message about a name that there is not: the nearest one, or all."""
    near = get_close_matches(name, offered, 1)
    return f"did you mean '{near[0]}'?" if near else f"there are {', '.join(offered)}"
