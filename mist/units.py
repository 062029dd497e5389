"""Quantities: ``3.35 TB/s`` in YAML, SI floats inside.

A dataclass field annotated with one of the aliases below (``Seconds``, ``Bytes``, ...) accepts a plain
number, taken as SI, or text with a unit of that dimension; anything else is refused by name. Prefixes are
decimal (k = 1000) unless written as binary (KiB = 1024).
"""

import re
from dataclasses import dataclass
from typing import Annotated

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*\Z")


def _prefixed(stem: str, prefixes: dict[str, float]) -> dict[str, float]:
    return {prefix + stem: factor for prefix, factor in prefixes.items()}


@dataclass(frozen=True, eq=False)
class Unit:
    """A dimension: its name in words, and its spellings with their SI factors."""

    dimension: str
    spellings: dict[str, float]

    def parse(self, text: str) -> float:
        """The SI value of ``text``; ValueError, saying what would do, if it is not of this dimension."""
        match = _NUMBER.match(text)
        if match is None:
            raise ValueError(f"not a number with a unit of {self.dimension}")
        number, spelling = match.groups()
        if spelling not in self.spellings:
            raise ValueError(f"{spelling or 'no unit'!r} is not a unit of {self.dimension}")
        return float(number) * self.spellings[spelling]


_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_BYTES = {"B": 1.0, **_prefixed("B", _DECIMAL), **_prefixed("B", _BINARY)}

TIME = Unit("time", _TIMES)
BYTES = Unit("bytes", _BYTES)
BANDWIDTH = Unit("bytes per second", {f"{name}/s": factor for name, factor in _BYTES.items()})
COMPUTE = Unit(
    "operations per second",
    {**_prefixed("FLOP/s", _DECIMAL), **_prefixed("FLOPS", _DECIMAL), **_prefixed("OP/s", _DECIMAL)},
)
POWER = Unit("power", {"mW": 1e-3, **_prefixed("W", _DECIMAL)})
RATE = Unit("rate", {"/s": 1.0, "req/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600})
MONEY_RATE = Unit("dollars per hour", {"$/h": 1.0, "USD/h": 1.0})

Seconds = Annotated[float, TIME]
Bytes = Annotated[float, BYTES]
BytesPerSecond = Annotated[float, BANDWIDTH]
OpsPerSecond = Annotated[float, COMPUTE]
Watts = Annotated[float, POWER]
PerSecond = Annotated[float, RATE]
DollarsPerHour = Annotated[float, MONEY_RATE]
