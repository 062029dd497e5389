"""The search space: override keys, and what each may be; every design in it, counted, listed or drawn."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np

from mist.errors import InputError
from mist.sweep.domain import Domain, Interval, Value, ends, from_end, ordered
from mist.sweep.formula import Formula

Design = dict[str, Value]  # override key -> value, active keys only


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

    def branches(self, start: int = 0, branch: Design | None = None) -> Iterator[Design]:
        """Every combination of values, of the listed keys that conditions read; one of nothing where there are none."""
        branch, read = branch or {}, {knob.when.key for knob in self.knobs if knob.when}
        for i, knob in enumerate(self.knobs[start:], start):
            if knob.key in read and not isinstance(knob.domain, Interval) and self.active(knob, branch):
                for value in knob.domain.values:
                    yield from self.branches(i + 1, {**branch, knob.key: value})
                return
        yield branch

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
            for value in dict.fromkeys(ends(knob.domain) if ordered(knob.domain) else _values(knob)):
                setting[knob.key] = value
                least, greatest = self._filled(setting, 0), self._filled(setting, -1)
                if least is None or greatest is None:
                    why = "no design has it: " + ", ".join(f"{one.key} = {one.formula.text}" for one in self.derived)
                    raise InputError(f"space.{knob.key}", value, f"{why} never comes to a whole number of at least 1")
                yield f"{knob.key}={value}", (least, greatest)

    def _filled(
        self, setting: Design, end: Literal[0, -1], start: int = 0, design: Design | None = None
    ) -> Design | None:
        """The design with ``setting`` and, for every other key, the first or the last of its values that there is."""
        design = design or {}
        for i, knob in enumerate(self.knobs[start:], start):
            if not self.active(knob, design):
                continue
            values = (setting[knob.key],) if knob.key in setting else from_end(knob.domain, end)
            found = (self._filled(setting, end, i + 1, {**design, knob.key: value}) for value in values)
            return next((whole for whole in found if whole is not None), None)
        return self.completed(design)


def _values(knob: Knob) -> tuple[Value, ...]:
    if isinstance(knob.domain, Interval):
        raise InputError(f"space.{knob.key}", "interval", "an interval cannot be enumerated")
    return knob.domain.values
