"""The values one key of a search space may take: ``choice(h100, a100)``, ``range(1, 8)``, ``interval(0.8, 0.95)``."""

import re
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeGuard

import yaml

from mist.errors import InputError

Value = str | int | float | bool | None

_KINDS = ("choice", "range", "interval", "log_range", "log_interval")
_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*\Z", re.DOTALL)
_DIGITS = 4  # significant digits of a value drawn from an interval: a design must be short enough to retype


@dataclass(frozen=True)
class Choice:
    """One of several values. Numbers are an order, and are kept sorted; names are not."""

    values: tuple[Value, ...]

    @property
    def ordered(self) -> bool:
        return all(_number(value) for value in self.values)

    @property
    def size(self) -> int:
        return len(self.values)

    def at(self, u: float) -> Value:
        """The value at ``u`` in [0, 1)."""
        return self.values[int(u * len(self.values))]


@dataclass(frozen=True)
class Range:
    """Whole numbers from ``low`` to ``high``, both included, ``step`` apart; ``log`` samples them by magnitude."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high + 1, self.step))

    @property
    def size(self) -> int:
        return (self.high - self.low) // self.step + 1

    def at(self, u: float) -> int:
        """The value at ``u`` in [0, 1)."""
        if self.log:
            return min(self.high, int(self.low * ((self.high + 1) / self.low) ** u))
        return self.low + int(u * self.size) * self.step


@dataclass(frozen=True)
class Interval:
    """Real numbers from ``low`` to ``high``, to four significant digits; ``log`` samples them by magnitude."""

    low: float
    high: float
    log: bool = False

    @property
    def size(self) -> None:
        """Not countable."""

    def at(self, u: float) -> float:
        """The value at ``u`` in [0, 1)."""
        return self.rounded(
            self.low * (self.high / self.low) ** u if self.log else self.low + u * (self.high - self.low)
        )

    def rounded(self, value: float) -> float:
        return min(self.high, max(self.low, float(f"{value:.{_DIGITS}g}")))


Domain = Choice | Range | Interval


def domain(field: str, text: str) -> Domain:
    """``choice(a, b)``, ``range(1, 8)``, ``range(0, 64, 8)``, ``interval(0.8, 0.95)``, and ``log_`` forms."""
    match = _CALL.match(text)
    kind, inside = match.groups() if match else (text, "")
    if not match or kind not in _KINDS:
        raise InputError(field, text, "not a set of values", [f"{name}(...)" for name in _KINDS])
    values = scalars(inside)
    if kind == "choice":
        return _choice(field, text, values)
    if kind.endswith("range"):
        return _range(field, text, values, kind.startswith("log"))
    return _interval(field, text, values, kind.startswith("log"))


def _choice(field: str, text: str, values: tuple[Value, ...]) -> Choice:
    if not values:
        raise InputError(field, text, "an empty choice")
    if len({(type(value), value) for value in values}) < len(values):
        raise InputError(field, text, "the same value twice")
    chosen = Choice(values)
    return Choice(tuple(sorted(values, key=_magnitude))) if chosen.ordered else chosen


def _range(field: str, text: str, values: tuple[Value, ...], logarithmic: bool) -> Range:
    whole = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    if len(whole) < len(values) or len(values) not in ((2,) if logarithmic else (2, 3)):
        form = "log_range(low, high)" if logarithmic else "range(low, high) or range(low, high, step)"
        raise InputError(field, text, f"must read {form} in whole numbers")
    low, high, step = (*whole, 1)[:3]
    if low > high or step < 1:
        raise InputError(field, text, "needs low <= high and a step of at least 1")
    if logarithmic and low < 1:
        raise InputError(field, text, "a logarithmic range starts at 1 or above")
    return Range(low, low + (high - low) // step * step, step, logarithmic)


def _interval(field: str, text: str, values: tuple[Value, ...], logarithmic: bool) -> Interval:
    numbers = [float(value) for value in values if _number(value)]
    if len(numbers) < len(values) or len(values) != 2 or not all(isfinite(number) for number in numbers):
        raise InputError(field, text, "must read interval(low, high) in numbers")
    low, high = numbers
    if not low < high:
        raise InputError(field, text, "needs low < high")
    if logarithmic and low <= 0:
        raise InputError(field, text, "a logarithmic interval starts above 0")
    return Interval(low, high, logarithmic)


def scalar(text: str) -> Value:
    """A number, truth value, null or text, as YAML reads it."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, str | int | float | bool) or value is None else text


def scalars(inside: str) -> tuple[Value, ...]:
    return tuple(scalar(part.strip()) for part in inside.split(",")) if inside.strip() else ()


def _number(value: Value) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _magnitude(value: Value) -> float:
    return float(value) if _number(value) else 0.0


def ordered(domain: Domain) -> bool:
    return not isinstance(domain, Choice) or domain.ordered


def ends(domain: Domain) -> tuple[Value, Value]:
    return (domain.values[0], domain.values[-1]) if isinstance(domain, Choice) else (domain.low, domain.high)


def from_end(domain: Domain, end: Literal[0, -1]) -> tuple[Value, ...]:
    """All values from one end on; of an interval only that end."""
    if isinstance(domain, Interval):
        return (ends(domain)[end],)
    return domain.values[:: 1 if end == 0 else -1]
