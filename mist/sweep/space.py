"""The search space: override keys, and what each may be.

In YAML a space is a map of text, ``hardware: choice(h100, a100)``, and its conditions a second map,
``scheduler.token_budget: scheduler in (chunked_prefill)``: a key whose condition fails is not part of the design. A
third map derives values from others, ``decode.replicas: 8 - prefill.replicas``; where one does not come to a whole
number of at least 1, there is no such design.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, prod
from typing import Literal, TypeGuard

import numpy as np
import yaml

from mist.errors import InputError
from mist.sweep.formula import Formula, formula

Value = str | int | float | bool | None
Design = dict[str, Value]  # override key -> value, active keys only

_KINDS = ("choice", "range", "interval", "log_range", "log_interval")
_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*\Z", re.DOTALL)
_WHEN = re.compile(r"\s*([\w.@/]+)\s+in\s+\((.*)\)\s*\Z", re.DOTALL)
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


@dataclass(frozen=True)
class Condition:
    """Holds where ``key`` has one of ``values``."""

    key: str
    values: tuple[Value, ...]

    def holds(self, design: Mapping[str, Value]) -> bool:
        return self.key in design and design[self.key] in self.values


@dataclass(frozen=True)
class Knob:
    """One key of the space."""

    key: str
    domain: Domain
    when: Condition | None = None


@dataclass(frozen=True)
class Derived:
    """One key whose value follows from others; part of a design that has all of them."""

    key: str
    formula: Formula
    when: Condition | None = None


@dataclass(frozen=True)
class Space:
    """Every design that may be judged. ``knobs`` come after the knobs their conditions read.

    ``fixed`` are the base overrides, which conditions and formulas may read too; they are not part of a design.
    """

    knobs: tuple[Knob, ...]
    fixed: Mapping[str, Value]
    derived: tuple[Derived, ...] = ()

    def active(self, knob: Knob | Derived, design: Mapping[str, Value]) -> bool:
        return knob.when is None or knob.when.holds({**self.fixed, **design})

    def completed(self, design: Design) -> Design | None:
        """``design`` with what is derived from it; None where that is not a whole number of at least 1."""
        whole = dict(design)
        for one in self.derived:
            known = {**self.fixed, **whole}
            if self.active(one, whole) and all(key in known for key in one.formula.reads):
                value = one.formula.of(known)
                if value is None:
                    return None
                whole[one.key] = value
        return whole

    @cached_property
    def conditional(self) -> bool:
        return any(knob.when is not None for knob in self.knobs)

    @cached_property
    def size(self) -> int | None:
        """How many designs there are; None where a key is continuous."""
        if any(isinstance(knob.domain, Interval) for knob in self.knobs):
            return None
        conditions = [knob.when for knob in self.knobs] + [one.when for one in self.derived]
        parents = {condition.key for condition in conditions if condition}
        return self._count(0, {}, parents.union(*(one.formula.reads for one in self.derived)))

    def _count(self, start: int, design: Design, parents: set[str]) -> int:
        factors: list[int] = []
        for i, knob in enumerate(self.knobs[start:], start):
            if not self.active(knob, design):
                continue
            if knob.key in parents:
                return prod(factors) * sum(
                    self._count(i + 1, {**design, knob.key: value}, parents) for value in _values(knob)
                )
            factors.append(knob.domain.size or 0)
        return 0 if self.completed(design) is None else prod(factors)

    def designs(self, start: int = 0, design: Design | None = None) -> Iterator[Design]:
        """All of them, in the order of the keys; only for a countable space."""
        design = design or {}
        for i, knob in enumerate(self.knobs[start:], start):
            if self.active(knob, design):
                for value in _values(knob):
                    yield from self.designs(i + 1, {**design, knob.key: value})
                return
        whole = self.completed(design)
        if whole is not None:
            yield whole

    def point(self, u: np.ndarray) -> Design | None:
        """The design at a point of the unit cube, one coordinate a knob; None where there is none."""
        design: Design = {}
        for knob, x in zip(self.knobs, u, strict=True):
            if self.active(knob, design):
                design[knob.key] = knob.domain.at(float(x))
        return self.completed(design)

    def probes(self) -> Iterator[tuple[str, tuple[Design, Design]]]:
        """Two designs for every name in the space and for both ends of every numeric key, labelled with it.

        They have the least and the greatest of all else. Together they read every configuration file that the space
        can reach; a value with which neither can be built is a mistake in the space.
        """
        for knob in self.knobs:
            setting: Design = {}
            above: Knob | None = knob
            while above and above.when:
                if above.when.key not in self.fixed:
                    setting[above.when.key] = above.when.values[0]
                above = next((k for k in self.knobs if above.when and k.key == above.when.key), None)
            for value in dict.fromkeys(_ends(knob.domain) if _ordered(knob.domain) else _values(knob)):
                setting[knob.key] = value
                ends = self._filled(setting, 0), self._filled(setting, -1)
                if ends[0] is None or ends[1] is None:
                    why = "no design has it: " + ", ".join(f"{one.key} = {one.formula.text}" for one in self.derived)
                    raise InputError(f"space.{knob.key}", value, f"{why} never comes to a whole number of at least 1")
                yield f"{knob.key}={value}", (ends[0], ends[1])

    def _filled(
        self, setting: Design, end: Literal[0, -1], start: int = 0, design: Design | None = None
    ) -> Design | None:
        """The design with ``setting`` and, for every other key, the first or the last of its values that there is."""
        design = design or {}
        for i, knob in enumerate(self.knobs[start:], start):
            if not self.active(knob, design):
                continue
            values = (setting[knob.key],) if knob.key in setting else _from(knob.domain, end)
            found = (self._filled(setting, end, i + 1, {**design, knob.key: value}) for value in values)
            return next((whole for whole in found if whole is not None), None)
        return self.completed(design)


def parse(
    texts: Mapping[str, str],
    when: Mapping[str, str],
    fixed: Mapping[str, Value],
    derived: Mapping[str, str] | None = None,
) -> Space:
    """The space of a sweep's ``space``, ``when`` and ``derived`` maps; InputError for each mistake, by its key.

    A key in ``fixed`` (the base overrides) takes that value and leaves the space.
    """
    formulas = _formulas(derived or {}, texts, fixed)
    domains = {key: domain(f"space.{key}", text) for key, text in texts.items()}
    conditions = {key: _condition(key, text, domains, fixed, formulas) for key, text in when.items()}
    knobs: dict[str, Knob] = {}

    def add(key: str, below: tuple[str, ...]) -> None:
        if key in below:
            raise InputError(f"when.{key}", when[key], f"goes round in a circle: {' -> '.join((*below, key))}")
        condition = conditions.get(key)
        if condition and condition.key not in fixed and condition.key not in knobs:
            add(condition.key, (*below, key))
        knobs.setdefault(key, Knob(key, domains[key], condition))

    for key in domains:
        if key not in fixed:
            add(key, ())
    following = (Derived(key, one, conditions.get(key)) for key, one in formulas.items() if key not in fixed)
    return Space(tuple(knobs.values()), fixed, tuple(following))


def _formulas(derived: Mapping[str, str], texts: Mapping[str, str], fixed: Mapping[str, Value]) -> dict[str, Formula]:
    """By key; each may read the space, the base and those before it."""
    formulas: dict[str, Formula] = {}
    for key, text in derived.items():
        field = f"derived.{key}"
        if key in texts:
            raise InputError(field, text, "is in the space, and what is varied is not derived")
        formulas[key] = formula(field, text)
        known = {*texts, *fixed, *formulas} - {key}
        for read in formulas[key].reads:
            if read not in known:
                raise InputError(
                    field, text, f"{read} is in neither the space nor the base, nor derived above", sorted(known)
                )
    return formulas


def domain(field: str, text: str) -> Domain:
    """``choice(a, b)``, ``range(1, 8)``, ``range(0, 64, 8)``, ``interval(0.8, 0.95)``, and ``log_`` forms."""
    match = _CALL.match(text)
    kind, inside = match.groups() if match else (text, "")
    if not match or kind not in _KINDS:
        raise InputError(field, text, "not a set of values", [f"{name}(...)" for name in _KINDS])
    values = _scalars(inside)
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


def _condition(
    key: str,
    text: str,
    domains: Mapping[str, Domain],
    fixed: Mapping[str, Value],
    formulas: Mapping[str, Formula],
) -> Condition:
    field = f"when.{key}"
    if key not in domains and key not in formulas:
        raise InputError(field, text, "a condition on a key that is not in the space", sorted(domains))
    match = _WHEN.match(text)
    values = _scalars(match[2]) if match else ()
    if not match or not values:
        raise InputError(field, text, "must read: other_key in (value, value)")
    parent = match[1]
    if parent not in domains and parent not in fixed:
        raise InputError(field, text, f"{parent} is neither in the space nor in the base", sorted({*domains, *fixed}))
    reach = domains.get(parent)
    if parent not in fixed and not isinstance(reach, Interval) and reach is not None:
        for value in values:
            if value not in reach.values:
                raise InputError(field, value, f"{parent} never has this value", [str(v) for v in reach.values])
    return Condition(parent, values)


def scalar(text: str) -> Value:
    """A number, truth value, null or text, as YAML reads it."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, str | int | float | bool) or value is None else text


def _scalars(inside: str) -> tuple[Value, ...]:
    return tuple(scalar(part.strip()) for part in inside.split(",")) if inside.strip() else ()


def _number(value: Value) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _magnitude(value: Value) -> float:
    return float(value) if _number(value) else 0.0


def _ordered(domain: Domain) -> bool:
    return not isinstance(domain, Choice) or domain.ordered


def _ends(domain: Domain) -> tuple[Value, Value]:
    return (domain.values[0], domain.values[-1]) if isinstance(domain, Choice) else (domain.low, domain.high)


def _from(domain: Domain, end: Literal[0, -1]) -> tuple[Value, ...]:
    """All values from one end on; of an interval only that end."""
    if isinstance(domain, Interval):
        return (_ends(domain)[end],)
    return domain.values[:: 1 if end == 0 else -1]


def _values(knob: Knob) -> tuple[Value, ...]:
    if isinstance(knob.domain, Interval):
        raise InputError(f"space.{knob.key}", "interval", "an interval cannot be enumerated")
    return knob.domain.values
