"""Files that the command line is told of: where answers are written, and where runs lie."""

from pathlib import Path

from mist.errors import InputError


def rows(name: str | None) -> Path | None:
    """Where --requests writes its rows."""
    return _writable("--requests", name, ".parquet")


def page(name: str | None) -> Path | None:
    """Where --write writes a page."""
    return _writable("--write", name, ".md")


def _writable(option: str, name: str | None, suffix: str) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    if path.suffix != suffix:
        raise InputError(option, name, f"the file's name must end in {suffix}")
    if not path.parent.is_dir():
        raise InputError(option, name, f"there is no directory {path.parent}")
    if path.is_dir():
        raise InputError(option, name, "is a directory")
    _try(option, path)
    return path


def _try(option: str, path: Path) -> None:
    """InputError where the file cannot be written: now, and not after an hour."""
    fresh = not path.exists()
    try:
        with path.open("ab"):
            pass
        if fresh:
            path.unlink()
    except OSError as error:
        raise InputError(option, str(path), f"cannot be written: {error.strerror}") from None


def run_directory(name: str) -> Path:
    """The run that is meant: its directory, or a sweep's, of which the latest counts."""
    for path in (Path(name), Path("results") / name):
        for run in (path, path / "latest"):
            if (run / "manifest.json").is_file():
                return run.resolve()
    runs = sorted(str(manifest.parent) for manifest in Path("results").glob("*/*/manifest.json"))
    raise InputError("", name, "no run is kept there", [run for run in runs if not run.endswith("latest")])
