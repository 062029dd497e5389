"""Load routing over eight replicas against AIBrix's long shared prompts, and what returning users make of it.

The measurements (vllm-project/aibrix, benchmarks/ps-experiment) drive eight vLLM replicas of Llama-3.1-8B, an A100-80G
each, by the multi-round benchmark of vllm-project/production-stack (benchmarks/multi-round-qa/run.sh): 320 users ask in
turn, every 1/qps seconds, for 100 seconds; a prompt is a system prompt of 1,000 tokens that all share, 20,000 of the
user's own, and a question. *Naive* is a Kubernetes service, random for each connection, over replicas with
prefix caching and without chunked prefill. At the rates reported no user asks twice in 100 seconds, so that only the
system prompt can be found again.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mist.build import build
from mist.compose import compose
from mist.metrics import Result
from mist.scenario import Scenario
from mist.simulate import serve
from mist.workload.content import SessionTurns
from mist.workload.traffic import Traffic

COLUMNS = ["set", "slice", "cell", "measured", "predicted", "unit", "split"]
SYSTEM, PROMPT, ANSWER = 1000, 21_073, 100  # tokens; the first two as above, the last two in every measured row
REQUESTS = 800  # predicted per cell: the measured 11 to 188 leave the mean of a random choice to chance
FIGURES = {"ttft_mean": "mean", "ttft_p50": "p50", "ttft_p90": "p90"}
DEPLOYMENT = ["hardware=a100", "model=llama-3.1-8b", "replicas=8", "scheduler=continuous",
              "scheduler.token_budget=32000", "prefix_caching=true", "slo=none"]  # fmt: skip


def score(path: Path) -> pd.DataFrame:
    """Predicted beside measured TTFT of every *naive* row of the table; other setups have no prediction.

    Columns: set, slice (release and setup), cell, measured, predicted, unit, split.
    """
    table = pd.read_csv(path)
    rates = sorted(set(table.qps[table.setup == "naive"]))
    found = {rate: served("random", askers(REQUESTS), float(rate)).latency or {} for rate in rates}
    cells = []
    for row in table.to_dict("records"):
        where, known = f"{row['release']} {row['setup']}", row["setup"] == "naive"
        for column, name in FIGURES.items():
            predicted = getattr(found[row["qps"]].get("ttft"), name, None) if known else None
            split = "held-out" if known else "not modelled"
            cells.append(["routing", where, f"{row['qps']:g}/s {column}", row[column], predicted, "s", split])
    return pd.DataFrame(cells, columns=COLUMNS).astype({"measured": float, "predicted": float})


def askers(users: int, rounds: int = 1) -> Traffic:
    """``users`` of the benchmark, ``rounds`` questions each, in an order that changes from round to round."""
    draw = np.random.default_rng(0)
    sessions = np.concatenate([draw.permutation(users) for _ in range(rounds)])
    n = users * rounds
    contents = SessionTurns(sessions, np.zeros(n, dtype=np.int64), 1, SYSTEM)
    return Traffic(np.arange(n, dtype=np.float64), np.full(n, PROMPT), np.full(n, ANSWER), contents=contents)


def served(router: str, traffic: Traffic, rate: float) -> Result:
    """The traffic at ``rate`` requests per second over the eight replicas behind one router."""
    return serve(build(Scenario, compose([*DEPLOYMENT, f"router={router}"])), traffic, rate)
