"""Single engine steps, as an engine logged them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mist.build import build
from mist.errors import InputError
from mist.perf.base import StepShape
from mist.scenario import Scenario
from mist.validation.harness import Facts, Overrides, composed, number


@dataclass(frozen=True)
class StepLog:
    """Single engine steps by the shape of their batch; no simulation.

    Facts: ``decodes`` sequences of ``decode_kv`` cached tokens each; ``chunks`` equal prompt chunks of ``tokens``
    tokens in all, with ``past`` cached tokens before them in all. A log has the mean context of a batch: the longest
    is taken for what is expected of so many contexts spread evenly over ``spread`` below to ``spread`` above the mean,
    and for no more than ``limit`` where no request of the log grew longer.
    """

    spread: float = 0.0  # share of the mean
    limit: int = 0  # tokens; 0: not known

    def __post_init__(self) -> None:
        if not 0 <= self.spread <= 1:
            raise InputError("spread", self.spread, "must lie in [0, 1]")
        if self.limit < 0:
            raise InputError("limit", self.limit, "must not be negative")
        if self.limit and not self.spread:
            raise InputError("limit", self.limit, "has no effect without spread", ["0"])

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        (spec,) = build(Scenario, composed({"slo": "none"}, overrides)).pools.values()
        decodes, kv = round(number(facts, "decodes")), number(facts, "decode_kv")
        chunks, tokens, past = (round(number(facts, fact)) for fact in ("chunks", "tokens", "past"))
        sizes = [(len(part), past // chunks) for part in np.array_split(np.arange(tokens), chunks)] if chunks else []
        shape = StepShape(decodes, round(decodes * kv), tuple(sizes), longest=round(self.longest(decodes, kv)))
        (stage,) = spec.steptimes()
        return {"step_time": stage.step_time(shape)}

    def longest(self, decodes: int, mean: float) -> float:
        """The longest context of a batch whose ``mean`` is known, tokens."""
        expected = mean * (1 + self.spread * (decodes - 1) / (decodes + 1))  # order statistics of a uniform variate
        return max(mean, min(expected, self.limit or expected))
