"""What there is to choose from: config groups and sweep files, the user's own on top of the packaged ones."""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from pathlib import Path
from textwrap import shorten

from yaml import YAMLError, safe_load

from mist.errors import MANY, InputError

# what `mist list` tells of a data sheet: key -> how to say it
FACTS: dict[str, dict[str, str]] = {
    "model": {"parameters": "parameters", "context": "context", "weight_dtype": "weights"},
    "hardware": {"vendor": "by", "memory": "memory", "memory_bandwidth": "at", "power": "power"},
    "price": {"provider": "asked by", "region": "in", "date": "on"},
    "sweeps": {"question": ""},
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
    choices = nearest(choice, groups().get(group, ()))
    listed = f"; mist list {group} has all {len(choices)}" if len(choices) >= MANY else ""
    raise InputError(group, choice, f"no such choice{listed}", choices)


def sweep_file(name: str) -> Path:
    """The file of a sweep: a path to a YAML as it is, a name from ./sweeps, then from the packaged ones."""
    if name.endswith((".yaml", ".yml")):
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
    """One line about a choice: the figures of a data sheet, or else the first sentence of its head comment."""
    file = sweep_file(choice) if group == "sweeps" else choice_file(group, choice)
    text = file.read_text(encoding="utf-8")
    try:
        data = safe_load(text) if group in FACTS else {}
    except YAMLError:
        return "(not valid YAML)"
    figures = [(name, data.get(key)) for key, name in FACTS.get(group, {}).items()] if data else []
    said = ", ".join(f"{name} {_short(value)}".strip() for name, value in figures if value not in (None, "none"))
    return shorten(said or _first_sentence(text), 120, placeholder=" ...")


def _short(value: object) -> str:
    return f"{value / 1e9:.3g} B" if isinstance(value, float) and value >= 1e6 else str(value)


def _first_sentence(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    head = list(takewhile(lambda line: line.startswith("#"), lines))
    return " ".join(line.strip("# ") for line in head).partition(". ")[0].rstrip(".")


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
