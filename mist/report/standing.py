"""How far the answer of a study can be trusted: what its bounds have decided, and how it was measured."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from mist.report.progress import amount

_NUMBER = re.compile(r"\d[\d.,e+-]*")


class Decided(Protocol):
    """How much of a space its bounds have decided (``mist.sweep.best_first.Standing``)."""

    @property
    def designs(self) -> int: ...
    @property
    def judged(self) -> int: ...
    @property
    def ruled_out(self) -> int: ...
    @property
    def impossible(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def highest(self) -> float: ...
    @property
    def best(self) -> float: ...


class Measured(Protocol):
    """One ranked design and what is to be said of its windows (``mist.sweep.ranking.Ranked``)."""

    @property
    def rung(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


def said(decided: Decided) -> str:
    """What bounds have decided: of so many designs, so many ruled out, and whether any that is left could be better."""
    nobody = f" ({decided.impossible} can serve nobody)" if decided.impossible else ""
    text = f"{decided.designs} designs: {decided.ruled_out} ruled out by their bounds{nobody}, {decided.judged} judged"
    if not decided.left:
        return f"{text}: no other can be among the leaders."
    more = f" ({decided.highest / decided.best:.2f} x the best searched)" if decided.best else ""
    reach = f"at most {amount(decided.highest)} per dollar{more}"
    return f"{text}, {decided.left} left open by the budget, which reach {reach}."


def cautions(rows: Sequence[Measured]) -> list[str]:
    """Where the window may have set an answer: by what, and in how many of the rows that rank first."""
    shown = [row for row in rows if row.rung == rows[0].rung]
    found: dict[str, list[str]] = defaultdict(list)
    for row in shown:
        own = {_NUMBER.sub("", note): note for note in row.notes}
        for kind, note in own.items():
            found[kind].append(note)
    return [f"{_how_many(len(told), len(shown))}: {told[0]}." for told in found.values()]


def _how_many(some: int, of: int) -> str:
    return "Measured" if of == 1 else f"Measured, all {of}" if some == of else f"Measured, {some} of these {of}"
