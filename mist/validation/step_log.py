"""Single engine steps, as an engine logged them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from mist.build import build
from mist.catalog import stamp
from mist.errors import InputError
from mist.perf.base import StepModel, StepShape
from mist.pool import PoolSpec
from mist.scenario import Scenario
from mist.validation.facts import count, number
from mist.validation.harness import Facts, Overrides, Unanswered, composed


@dataclass(frozen=True)
class StepLog:
    """Single engine steps by the shape of their batch; no simulation.

    Facts: ``decodes`` sequences of ``decode_kv`` cached tokens each; ``chunks`` equal prompt chunks of ``tokens``
    tokens in all, with ``past`` cached tokens before them in all. A log has the mean context of a batch: the longest
    is taken for what is expected of so many contexts spread evenly over ``spread`` below to ``spread`` above the mean,
    and for no more than ``limit`` where no request of the log grew longer.
    Of several copies of attention (``dp``) each has an engine core that logs its own steps (vLLM documentation, "Data
    Parallel Deployment"); the others are taken to do as much.
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
        spec, stages = _engine(stamp(), tuple(overrides.items()))
        if spec.pp > 1:
            raise Unanswered("a step of a pipeline is several, one of each stage: which was logged is not stated")
        decodes, kv = count(facts, "decodes", 0), number(facts, "decode_kv")
        chunks, tokens, past = (count(facts, fact, 0) for fact in ("chunks", "tokens", "past"))
        if not (decodes or (chunks and tokens)):
            raise InputError("decodes", decodes, "the step holds neither a decode nor a prompt chunk")
        if kv < 0 or chunks > tokens:
            name, value = ("decode_kv", kv) if kv < 0 else ("chunks", chunks)
            raise InputError(name, value, "a cache holds 0 tokens at least, and a chunk one")
        sizes = [(len(part), past // chunks) for part in np.array_split(np.arange(tokens), chunks)] if chunks else []
        context, longest = round(spec.dp * decodes * kv), round(self.longest(decodes, kv))
        shape = StepShape(spec.dp * decodes, context, tuple(spec.dp * sizes), longest=longest)
        return {"step_time": stages[0].step_time(shape)}

    def longest(self, decodes: int, mean: float) -> float:
        """The longest context of a batch whose ``mean`` is known, tokens."""
        expected = mean * (1 + self.spread * (decodes - 1) / (decodes + 1))  # order statistics of a uniform variate
        return max(mean, min(expected, self.limit or expected))


@lru_cache(64)
def _engine(now: object, overrides: tuple[tuple[str, str], ...]) -> tuple[PoolSpec, Sequence[StepModel]]:  # noqa: ARG001
    """The one pool of a deployment and the step times of its stages; ``now`` stands for the user's own config files."""
    (spec,) = build(Scenario, composed({"slo": "none"}, dict(overrides))).pools.values()
    return spec, spec.steptimes()
