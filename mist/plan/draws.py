"""The chances of plans: one stream for every place in a pipeline, one draw for every request of the cycle."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mist.plan.times import Times
from mist.streams import stream
from mist.workload.lengths import Lengths


class Draws:
    """What the plans of one cycle of requests draw, each place (``retrieve``, ``rounds.2.tool``) from its own stream.

    Like the traffic, the draws repeat every cycle. They depend on the seed, the place and the request's position
    alone, so designs, rates and the other stages of a pipeline change nothing of them (common random numbers).
    """

    def __init__(self, seed: int, requests: int) -> None:
        self._seed, self._requests = seed, requests
        self._columns: dict[str, list[Any]] = {}

    def column(self, place: str, draw: Callable[[int, np.random.Generator], Any]) -> list[Any]:
        """The draws of every request at this place."""
        values = self._columns.get(place)
        if values is None:
            values = draw(self._requests, stream(self._seed, f"pipeline.{place}")).tolist()
            self._columns[place] = values
        return values

    def of(self, request: int, kind: str = "", tokens: int = 0) -> "Chance":
        """Those of one request, by its number (of any cycle, negative in warm-up), class and prompt."""
        return Chance(self, request % self._requests, kind, tokens)


class Chance(NamedTuple):
    """The draws of one request, and what else its plan may go by."""

    draws: Draws
    position: int  # in the cycle
    kind: str = ""  # its class
    tokens: int = 0  # of its prompt

    def number(self, place: str, lengths: Lengths) -> int:
        value: int = self.draws.column(place, lengths.draw)[self.position]
        return value

    def seconds(self, place: str, times: Times) -> float:
        value: float = self.draws.column(place, times.draw)[self.position]
        return value

    def share(self, place: str) -> float:
        """Uniform in [0, 1)."""
        value: float = self.draws.column(place, _uniform)[self.position]
        return value


def _uniform(n: int, chance: np.random.Generator) -> Any:
    return chance.random(n)
