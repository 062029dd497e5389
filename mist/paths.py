"""Files that the command line is told of: where answers are written, and where runs lie."""

from pathlib import Path

from mist.errors import InputError


def writable(name: str | None) -> Path | None:
    """Where --requests writes its rows."""
    if name is None:
        return None
    path = Path(name)
    if path.suffix != ".parquet":
        raise InputError("--requests", name, "the file's name must end in .parquet")
    if not path.parent.is_dir():
        raise InputError("--requests", name, f"there is no directory {path.parent}")
    return path


def page(name: str | None) -> Path | None:
    """Where --write writes a page."""
    if name is None:
        return None
    path = Path(name)
    if path.suffix != ".md":
        raise InputError("--write", name, "the file's name must end in .md")
    if not path.parent.is_dir():
        raise InputError("--write", name, f"there is no directory {path.parent}")
    return path


def run_directory(name: str) -> Path:
    """The run that is meant: its directory, or a sweep's, of which the latest counts."""
    for path in (Path(name), Path("results") / name):
        for run in (path, path / "latest"):
            if (run / "manifest.json").is_file():
                return run.resolve()
    runs = sorted(str(manifest.parent) for manifest in Path("results").glob("*/*/manifest.json"))
    raise InputError("", name, "no run is kept there", [run for run in runs if not run.endswith("latest")])
