"""What there is to choose from: config groups and sweep files, the user's own on top of the packaged ones."""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from yaml import YAMLError, safe_load

from mist.errors import InputError

# what `mist list` tells of a data sheet: key -> how to say it
FACTS: dict[str, dict[str, str]] = {
    "model": {"parameters": "parameters", "context": "context", "weight_dtype": "weights"},
    "hardware": {"vendor": "by", "memory": "memory", "memory_bandwidth": "at", "power": "power"},
    "price": {"provider": "asked by", "region": "in", "date": "on"},
    "link": {"bandwidth": "bandwidth", "latency": "latency"},
    "slo": {f"{m}_p{p}": f"{m.upper()} P{p}" for m in ("ttft", "tpot", "e2e") for p in (50, 90, 95, 99)},
}


def roots(noun: str) -> tuple[Path, ...]:
    """The directories that hold ``noun`` (``conf`` or ``sweeps``), highest first: ./noun, then the packaged one."""
    own, packaged = Path.cwd() / noun, _packaged(noun)
    return (own, packaged) if own.is_dir() and not own.samefile(packaged) else (packaged,)


@cache
def _packaged(noun: str) -> Path:
    package = Path(__file__).resolve().parent
    installed = package / noun  # in a source checkout it lies beside the package instead
    return installed if installed.is_dir() else package.parent / noun


def groups() -> dict[str, tuple[str, ...]]:
    """The choices of every config group over the search path, by group."""
    found: dict[str, set[str]] = {}
    for root in roots("conf"):
        for entry in _files(root):
            group, _, choice = os.path.relpath(entry.path, root).removesuffix(".yaml").rpartition(os.sep)
            if group:
                found.setdefault(group, set()).add(choice)
    return {group: tuple(sorted(choices)) for group, choices in sorted(found.items())}


def stamp() -> tuple[tuple[str, int], ...]:
    """The user's own config files with their times of change: equal stamps compose equally in one process."""
    own = roots("conf")[:-1]
    files = [entry for root in own for entry in _files(root)]
    return tuple(sorted([(str(root), 0) for root in own] + [(file.path, file.stat().st_mtime_ns) for file in files]))


def choice_file(group: str, choice: str) -> Path:
    """The file behind a choice; InputError, the closest choice first, where there is none."""
    for root in roots("conf"):
        file = root / group / f"{choice}.yaml"
        if file.is_file():
            return file
    raise InputError(group, choice, "no such choice", nearest(choice, groups().get(group, ())))


def sweep_file(name: str) -> Path:
    """The file of a sweep: a path to a YAML as it is, a name from ./sweeps, then from the packaged ones."""
    if name.endswith(".yaml"):
        if Path(name).is_file():
            return Path(name)
        raise InputError("sweep", name, "no such file")
    for root in roots("sweeps"):
        file = root / f"{name}.yaml"
        if file.is_file():
            return file
    raise InputError("sweep", name, "no such sweep", nearest(name, sweeps()))


def sweeps() -> tuple[str, ...]:
    """The names of all sweeps."""
    return tuple(sorted({file.stem for root in roots("sweeps") for file in root.glob("*.yaml")}))


def facts(group: str, choice: str) -> str:
    """One line about a choice: what its file says first, in a comment or in its data."""
    file = sweep_file(choice) if group == "sweeps" else choice_file(group, choice)
    text = file.read_text(encoding="utf-8")
    if group in FACTS:
        try:
            data = safe_load(text) or {}
        except YAMLError:
            return "(not valid YAML)"
        return ", ".join(f"{name} {data[key]}" for key, name in FACTS[group].items() if data.get(key) is not None)
    said = [line for line in text.splitlines() if line.startswith("#") and not line.startswith("# @package")]
    return said[0].lstrip("# ") if said else ""


def nearest(word: str, choices: tuple[str, ...]) -> list[str]:
    """The choices, those most like ``word`` first."""
    return get_close_matches(word, choices, n=len(choices) or 1, cutoff=0.0)


def _files(root: Path) -> Iterator["os.DirEntry[str]"]:
    """The YAML files of the groups of ``root`` and of ``root`` itself."""
    with os.scandir(root) as entries:
        inside = [entry for entry in entries if not entry.name.startswith((".", "_"))]
    for entry in inside:
        if entry.name.endswith(".yaml"):
            yield entry
        elif entry.is_dir() and entry.name != "hydra":
            with os.scandir(entry.path) as files:
                yield from (file for file in files if file.name.endswith(".yaml"))
