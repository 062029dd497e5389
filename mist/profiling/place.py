"""Where measurements are written: looked at before anything is measured."""

from pathlib import Path
from tempfile import TemporaryFile

from mist.errors import InputError


def writable(option: str, folder: Path) -> None:
    """Make the folder; InputError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(option, folder, f"nothing can be written there: {error.strerror}") from None


def refuse_foreign(option: str, path: Path, mark: str) -> None:
    """InputError for a file that is there and does not hold ``mark``, what files that were measured have in them."""
    if path.exists() and mark not in path.read_text(encoding="utf-8"):
        raise InputError(option, path, "is a file that was not measured here, and is not written over; choose another")
