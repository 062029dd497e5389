"""Composed operators on disk: found again by what was asked, of which tables, by which code."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from mist.perf.tables.curve import Curve
from mist.perf.tables.files import System
from mist.perf.tables.grid import Grid
from mist.perf.tables.linear import Scan
from mist.perf.tables.operators import Asked, Layers, Operators, operators

_known: dict[str, Operators] = {}
KEPT = 256  # of a process


def stored(asked: Asked) -> Operators:
    """The operators asked for: of this process, of the disk, or read from the tables and written there.

    A cache that cannot be read or written costs time, never an answer.
    """
    key = digest(asked)
    if key not in _known:
        if len(_known) >= KEPT:
            _known.clear()
        path = folder() / f"{key}.json"
        found = _load(path)
        if found is None:
            found = operators(asked)
            _save(path, found)
        _known[key] = found
    return _known[key]


def folder() -> Path:
    """``$MIST_CACHE``, or ``mist`` in the platform's folder for a user's caches."""
    if given := os.environ.get("MIST_CACHE"):
        return Path(given) / "operators"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mist" / "operators"


def digest(asked: Asked) -> str:
    """sha256 over all that can change the operators."""
    replica = asked.replica
    plain = {
        "tables": System(replica.hardware.tables, replica.engine.kernels).identity(),
        "code": _code(),
        "model": {**asdict(replica.model), "name": "", "parameters": 0, "context": 0},
        "hardware": {**vars(replica.hardware), "peaks": dict(replica.hardware.peaks)},
        "node": asdict(replica.node),
        "kernels": (replica.engine.kernels, replica.engine.allreduce),
        "layout": (replica.tp, replica.dp, replica.ep),
        "perf": asked[1:],
    }
    return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> str:
    here = Path(__file__).parent
    sources = [
        *here.glob("*.py"),
        here.parent / "base.py",
        here.parent / "collective.py",
        here.parent / "recurrence.py",
    ]
    return sha256(b"\0".join(path.read_bytes() for path in sorted(sources))).hexdigest()


def _load(path: Path) -> Operators | None:
    try:
        plain: dict[str, Any] = json.loads(path.read_bytes())
        local, group, head = (_curves(plain[name]) for name in ("local", "group", "head"))
        scan = None if plain["scan"] is None else _scan(plain["scan"])
        return Operators(local, group, head, tuple(_layers(kind) for kind in plain["attention"]), scan)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _curves(plain: Mapping[str, Any]) -> dict[str, Curve]:
    return {name: Curve(tuple(x), tuple(y), source, end) for name, (x, y, source, end) in plain.items()}


def _layers(plain: Any) -> Layers:
    layers, window, prompt, decode, *included = plain
    return Layers(layers, window, _grid(prompt), _grid(decode), *included)


def _scan(plain: Any) -> Scan:
    layers, (x, y, source, end), prompt = plain
    return Scan(layers, Curve(tuple(x), tuple(y), source, end), _grid(prompt))


def _grid(plain: Any) -> Grid:
    batches, lengths, seconds, *rest = plain
    return Grid(tuple(batches), tuple(lengths), tuple(map(tuple, seconds)), tuple(rest[0]), *rest[1:])


def _save(path: Path, found: Operators) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
            part.write(json.dumps(found._asdict(), separators=(",", ":")))
        Path(part.name).replace(path)  # whole or not at all
