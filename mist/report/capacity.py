"""A capacity as a person reads it in a terminal."""

from collections.abc import Mapping
from typing import Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from mist.metrics import Result
from mist.report.text import BAD, DIM, GOOD, simulation


class Capacity(Protocol):
    """What was found (``mist.sweep.capacity.Capacity``)."""

    @property
    def rate(self) -> float:
        """Mean over seeds, requests per second."""

    @property
    def by_seed(self) -> Mapping[int, float]:
        """The same of each."""

    @property
    def tokens_per_dollar(self) -> float:
        """Mean over seeds."""

    @property
    def probes(self) -> int:
        """Simulations it took."""

    @property
    def worst(self) -> Result:
        """Of the seed with the least capacity."""


def capacity(answer: Capacity) -> RenderableType:
    """The largest rate that holds, its spread over seeds, and the Result there."""
    result = answer.worst
    if not answer.rate:
        return Text.assemble(("capacity 0 requests/s: ", BAD), result.reason)
    head = Text.assemble(("capacity ", ""), (f"{answer.rate:.3g} requests/s", f"bold {GOOD}"))
    rates = answer.by_seed
    if len(rates) > 1:
        spread = (max(rates.values()) - min(rates.values())) / answer.rate
        each = ", ".join(f"{rate:.3g}" for rate in rates.values())
        head.append(f"   {len(rates)} seeds: {each} (spread {spread:.1%}); below: the least, seed {result.seed}")
    else:
        head.append("   one seed; --seeds 3 shows the spread", DIM)
    if result.pools:
        head.append(f"\n{answer.tokens_per_dollar:,.0f} output tokens per dollar within SLO", "bold")
    head.append(f"   {answer.probes} simulations", DIM)
    return Group(head, Text(), simulation(result))
