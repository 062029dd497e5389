"""What makes two designs, or two runs, the same: a hash over every input that can change an answer."""

import json
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import mist
from mist.build import build, plain
from mist.errors import StaleRun, as_typed
from mist.perf.tables.files import PACKAGE
from mist.scenario import Scenario
from mist.workload.traffic import check_open


def digest(value: object) -> str:
    """sha256 of the canonical JSON of plain data: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return sha256(text.encode()).hexdigest()


def ordered_digest(value: object) -> str:
    """The same with keys as they come: stages run, and pools are placed, in the order of their maps."""
    return digest(_items(value))


def _items(value: object) -> object:
    if isinstance(value, Mapping):
        return [[key, _items(item)] for key, item in value.items()]
    return [_items(item) for item in value] if isinstance(value, list | tuple) else value


@cache
def code() -> Mapping[str, str]:
    """What computes an answer: the version of MIST, a hash of its sources, the versions of NumPy and of the tables."""
    root = Path(mist.__file__).parent
    sources = sha256()
    for path in sorted(root.rglob("*.py")):
        sources.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return {
        "mist": _release("mist-llm", "source"),  # run from a source tree it has none
        "mist sources": sources.hexdigest(),
        "numpy": np.__version__,
        "operator tables": _release(PACKAGE, "none"),
    }


def _release(package: str, otherwise: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return otherwise


def canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """The plain data of what ``config`` builds: SI numbers, every default spelt out, so that 1 s and 1000 ms are one.

    Raises InputError, the address as users type it, where it cannot be built.
    """
    with as_typed(config["pools"]):
        scenario = build(Scenario, config)
        check_open(scenario.workload)
        data: dict[str, Any] = plain(scenario)
    return data


def design_identity(built: Mapping[str, Any], content: str) -> str:
    """Of one design: what it is in canonical form, the content hash of its workload's file, and the code."""
    return ordered_digest({"design": built, "content": content, "code": dict(code())})


def refuse_changes(recorded: Mapping[str, str], present: Mapping[str, str]) -> None:
    """StaleRun, naming what changed, unless a run's recorded inputs are the present ones."""
    names = sorted({*recorded, *present})
    changed = [name for name in names if recorded.get(name) != present.get(name)]
    if changed:
        raise StaleRun(
            "run",
            ", ".join(changed),
            "changed since the run began, and answers from before and after must not be mixed; start a new run",
        )
