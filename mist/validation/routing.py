"""Load routing over equal replicas, replayed: users who ask in turn, with long prompts that begin alike."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mist.build import build
from mist.errors import InputError
from mist.metrics import Result
from mist.scenario import Scenario
from mist.simulate import serve
from mist.validation.facts import number
from mist.validation.harness import Facts, Overrides, Unanswered, composed
from mist.workload.content import SessionTurns
from mist.workload.traffic import Traffic


@dataclass(frozen=True)
class LoadRouting:
    """One question of each of ``requests`` users at a steady rate, over replicas behind a router.

    Facts: setup (``routers`` says what routes in it), qps, input and output tokens. The first ``shared`` tokens of all
    prompts are the same.
    """

    requests: int
    shared: int
    routers: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise InputError("requests", self.requests, "must be at least 1")

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        router = self.routers.get(facts["setup"])
        if router is None:
            raise Unanswered(f"how the setup {facts['setup']} routes and caches is not stated")
        asked = askers(self.requests, 1, round(number(facts, "input")), round(number(facts, "output")), self.shared)
        result = served(asked, number(facts, "qps"), {"router": router, **overrides})
        if result.latency is None:
            raise Unanswered(result.reason)
        ttft = result.latency["ttft"]
        return {"ttft_mean": ttft.mean, "ttft_p50": ttft.p50, "ttft_p90": ttft.p90}


def askers(users: int, rounds: int, prompt: int, answer: int, shared: int) -> Traffic:
    """``users`` with ``rounds`` questions each, in an order that changes from round to round; lengths in tokens."""
    draw = np.random.default_rng(0)
    sessions = np.concatenate([draw.permutation(users) for _ in range(rounds)])
    n = users * rounds
    contents = SessionTurns(sessions, np.zeros(n, dtype=np.int64), 1, shared)
    return Traffic(np.arange(n, dtype=np.float64), np.full(n, prompt), np.full(n, answer), contents=contents)


def served(traffic: Traffic, rate: float, overrides: Overrides) -> Result:
    """The traffic at ``rate`` requests per second on a deployment."""
    return serve(build(Scenario, composed({"slo": "none"}, overrides)), traffic, rate)
