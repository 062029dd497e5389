"""Best bound first: designs that cannot be among the leaders are never judged (Land and Doig, Econometrica 28, 1960).

Every design has a bound (``mist.sweep.bound``) before any is judged. They are judged in falling order of it, until the
next cannot exceed the least of the leaders: nor can any behind it, and the leaders are those of the whole space.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from mist.sweep import ranking
from mist.sweep.identity import digest
from mist.sweep.space import Design


@dataclass(frozen=True)
class Bounded:
    """A design, at most how much it can reach, and why that is nothing."""

    design: Design
    bound: float
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data; an infinite bound is None."""
        return {"design": self.design, "bound": None if self.bound == inf else self.bound, "reason": self.reason}


def of_json(line: Mapping[str, Any]) -> Bounded:
    """What ``to_json`` made plain."""
    return Bounded(line["design"], inf if line["bound"] is None else line["bound"], line["reason"])


@dataclass(frozen=True)
class Standing:
    """How much of a space is decided.

    ``impossible`` are those of the ``ruled_out`` that can serve nobody, ``highest`` the best bound of those ``left``,
    ``best`` the best answer of the search.
    """

    designs: int
    judged: int
    ruled_out: int
    impossible: int
    left: int
    highest: float
    best: float


def in_order(bounds: Iterable[Bounded]) -> list[Bounded]:
    """By falling bound; of equal ones, as they come."""
    return sorted(bounds, key=lambda one: -one.bound)


def least(lines: Sequence[Mapping[str, Any]], leaders: int) -> float:
    """What a design must exceed to be a leader; as long as none is feasible, -1: why they are not is worth knowing.

    Leaders that full fidelity has refuted keep their places, so that others can be found for them.
    """
    held, most = ranking.feasible(lines), max(leaders, 1)
    places = min(most + len(ranking.refuted(lines)), 2 * most)
    if len(held) >= places:
        return float(held[places - 1]["record"]["value"])
    return 0.0 if held else -1.0


def standing(bounds: Sequence[Bounded], lines: Sequence[Mapping[str, Any]], leaders: int) -> Standing:
    """Where a search stands, from its bounds and the answers so far."""
    known = {digest(line["design"]) for line in lines if line["rung"] != "confirm"}
    unknown = [one.bound for one in bounds if digest(one.design) not in known]
    limit = least(lines, leaders)
    left, out = [value for value in unknown if value > limit], [value for value in unknown if value <= limit]
    judged = len(bounds) - len(unknown)
    best = max((line["record"]["value"] for line in ranking.feasible(lines)), default=0.0)
    return Standing(len(bounds), judged, len(out), out.count(0.0), len(left), max(left, default=0.0), best)
