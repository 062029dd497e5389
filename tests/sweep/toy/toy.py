"""A world that can be judged on paper: compose and judge for the sweep's tests, importable by Ray workers.

``value = 1e6 * speed[hardware] / price * tp^-0.1 * bump(token_budget)``; l40s with tp=1 does not fit. ``mode``
makes a design crash, hang, spin, die or answer nonsense; fewer than 50 requests flatter the h100; ``strict`` makes
tp=1 infeasible on 50; TOY_SLEEP slows every design down; TOY_LOG counts calls.
"""

import os
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from math import log
from pathlib import Path

import numpy as np

from mist.errors import DeadlineExceeded, InputError
from mist.workload.traffic import Traffic

sys.modules.setdefault("mist.toy", sys.modules[__name__])  # only targets inside mist can be built

SPEED, PRICE = {"h100": 3.0, "a100": 1.4, "l40s": 0.8}, {"h100": 4.0, "a100": 1.6, "l40s": 1.0}


@dataclass(frozen=True)
class ToyWorkload:
    path: str = ""
    requests: int = 50
    rate: float | None = None

    def traffic(self, seed: int) -> Traffic:
        lengths = np.random.default_rng(seed).integers(1, 99, self.requests)
        return Traffic(np.arange(float(self.requests)), lengths, lengths)

    def own_rate(self) -> float:
        return 1.0

    def content(self) -> str:
        return sha256(Path(self.path).read_bytes()).hexdigest() if self.path else ""


def compose(overrides):
    config = {"hardware": "h100", "tp": 1, "scheduler": "static", "token_budget": 0, "mode": "fine", "x": 0.0}
    config |= {"workload.path": "", "slo.ttft_p99": 1.0, "price.date": "2026-11-01", "note": "", "slow": 0}
    config |= {"workload.requests": 50, "strict": 0}
    for text in overrides:
        key, _, value = text.partition("=")
        if key not in config:
            raise InputError(key, value, "no such option", sorted(config))
        if key == "hardware" and value not in SPEED:
            raise InputError(key, value, "no such hardware", sorted(SPEED))
        config[key] = type(config[key])(value)
    if config["scheduler"] == "static":
        config["token_budget"] = 0
    workload = {"_target_": "mist.toy.ToyWorkload", "path": config.pop("workload.path")}
    workload["requests"] = config.pop("workload.requests")
    return {
        **config,
        "workload": workload,
        "slo": {"ttft_p99": config.pop("slo.ttft_p99")},
        "price": {"date": config.pop("price.date"), "hourly": os.environ.get("TOY_PRICES", "")},
    }


def canonical(config):
    return dict(config)


def judge(config, traffic, limit_s):
    if log_path := os.environ.get("TOY_LOG"):
        with Path(log_path).open("a") as file:
            file.write(f"{config['hardware']} {config['tp']} {config['token_budget']} {config['x']} {list(traffic)}\n")
    time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
    misbehave(config, limit_s)
    short = all(len(seeded) < 50 for seeded in traffic.values())
    if config["strict"] and config["tp"] == 1 and not short:
        return record(0.0, config, {"ttft_p99": 0.5}, f"even when idle, ttft_p99 {config['strict']} s > 1 s")
    noise = float(np.mean([seeded.inputs.mean() for seeded in traffic.values()])) / 1e4
    if config["hardware"] == "l40s" and config["tp"] == 1:
        return record(0.0, config, {"memory": log(1.5)}, "needs 60 GB, has 48 GB")
    bump = 1 + 0.2 * (config["token_budget"] == 2048) + 0.05 * (config["scheduler"] == "chunked")
    flattery = 1.2 if short and config["hardware"] == "h100" else 1.0
    value = flattery * 1e6 * SPEED[config["hardware"]] / PRICE[config["hardware"]] * config["tp"] ** -0.1 * bump
    return record(value * (1 + noise) * (1 - config["x"] ** 2), config, {"ttft_p99": -0.1}, "")


def bound(config, traffic, objective):
    """More than the judge says of any budget, on a screen too."""
    if config["hardware"] == "l40s" and config["tp"] == 1:
        return 0.0, "needs 60 GB, has 48 GB"
    value = 1e6 * SPEED[config["hardware"]] / PRICE[config["hardware"]] * config["tp"] ** -0.1 * 1.25 * 1.01
    return value * 1.2 * float(os.environ.get("TOY_SLACK", "1.0")), ""


def misbehave(config, limit_s):
    mode = config["mode"]
    if mode == "crash":
        raise Unpicklable(f"the toy broke at tp={config['tp']}")
    if mode == "hang":
        time.sleep(3600)
    if mode == "slow":
        raise DeadlineExceeded(f"past {limit_s} s")
    if mode == "die":
        os._exit(9)
    if mode == "die_once":
        flag = Path(config["note"])
        if not flag.exists():
            flag.touch()
            os._exit(9)


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("never")


def record(value, config, constraints, reason):
    price = PRICE[config["hardware"]] * config["tp"]
    metrics = {"ttft_p50": 0.21, "ttft_p99": 0.93, "tpot_p50": 0.011, "tpot_p99": 0.034}
    metrics |= {"output_tokens_per_s": value * price / 3600, "dollars_per_hour": price, "attainment": 0.99}
    verdict = "infeasible" if reason else "ok"
    answer = {"value": value, "capacity": value / 2e5, "verdict": verdict, "reason": reason}
    return {**answer, "metrics": metrics if value else {}, "constraints": constraints, "spread": None}
