"""trtllm-bench: an offline batch on an engine whose limits the benchmark itself chose."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import pandas as pd

from mist.build import build
from mist.model import BYTES_PER_ELEMENT
from mist.perf.base import Replica
from mist.scenario import Scenario
from mist.validation.facts import number
from mist.validation.harness import BENCHMARK, Facts, Overrides, composed, fixed, outcome

MEMORY_SHARE = 0.95  # of what weights leave free, for the KV cache: calc_engine_setting, kv_cache_gpu_mem_fraction
MOST_REQUESTS, MOST_TOKENS = 4096, 32768  # finetune_setting: decoder and activation buffers


@dataclass(frozen=True)
class TrtllmBench:
    """``requests`` requests of fixed lengths at time 0, on an engine built for them.

    ``trtllm-bench build --dataset`` chooses max_batch_size and max_num_tokens from the requests' lengths and the memory
    (TensorRT-LLM, tensorrt_llm/bench/build/tuning.py, calc_engine_setting and finetune_setting).
    """

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        load = {"workload": "all_at_once", **fixed(facts)}
        (spec,) = build(Scenario, composed(BENCHMARK, load, overrides)).pools.values()
        requests, tokens = limits(spec.replica, number(facts, "input"), number(facts, "output"))
        chosen = {"scheduler.max_running": str(requests), "scheduler.token_budget": str(tokens)}
        return outcome(composed(BENCHMARK, load, chosen, overrides))


def limits(replica: Replica, prompt: float, answer: float) -> tuple[int, int]:
    """Most requests and most tokens of a step, rounded up as the benchmark does."""
    model, devices = replica.model, replica.devices
    kv_token = 2 * model.layers * max(replica.tp, model.kv_heads) * model.head_dim * BYTES_PER_ELEMENT[model.kv_dtype]
    free = replica.hardware.memory * devices - model.parameters * BYTES_PER_ELEMENT[model.weight_dtype]
    fit = min(MEMORY_SHARE * free / (kv_token * (prompt + answer)), MOST_REQUESTS) / replica.pp
    return _requests(fit), _tokens(min(fit * (1 + prompt / answer), MOST_TOKENS))


def _requests(fit: float) -> int:
    if fit < 256:
        return max(64, 32 * ceil(fit / 32))
    step = 128 if fit < 1024 else 256
    return step * ceil(fit / step)


def _tokens(wanted: float) -> int:
    if wanted < 4096:
        return max(2048, 256 * ceil(wanted / 256))
    step = 512 if wanted < 8192 else 1024
    return step * ceil(wanted / step)
