"""A design to judge, what came of it, and the judging itself, wherever it is done.

Whatever a judge does, raise or answer with something that cannot be pickled, comes back as plain data.
"""

import importlib
import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mist.workload.traffic import Traffic

Report = dict[str, Any]
Judge = Callable[[dict[str, Any], Mapping[int, Traffic], float], Report]


@dataclass(frozen=True)
class Job:
    """One design to judge. ``traffic`` is keyed by seed; jobs of one workload share the same arrays."""

    number: int
    config: dict[str, Any]
    traffic: Mapping[int, Traffic]
    limit_s: float
    attempt: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came of a job: a record, or an error of ``type``, ``message`` and ``traceback``."""

    number: int
    record: Report | None
    error: Report | None
    wall_s: float
    attempts: int


def named(path: str) -> Any:
    """The object that a dotted path names."""
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def judged(judge: str, config: dict[str, Any], traffic: Mapping[int, Traffic], limit_s: float) -> Report:
    """The record of ``judge``, or an error record; plain data either way. This is what a worker runs."""
    judging = named(judge)  # outside: a worker without the judge is no failure of the design
    began = time.perf_counter()
    try:
        record = json.loads(json.dumps(judging(config, traffic, limit_s), allow_nan=False))
        answer = {"record": record, "error": None}
    except Exception as error:  # whatever it is, it is the answer for this design
        answer = {"record": None, "error": told(error)}
    return {**answer, "wall_s": time.perf_counter() - began}


def told(error: BaseException) -> Report:
    """An error as plain data."""
    trace = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error), "traceback": trace}
