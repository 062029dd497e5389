"""Multi-head latent attention: whole modules, projections included, or bare kernels."""

from typing import NamedTuple

import numpy as np

from mist.model import ModelSpec
from mist.perf.tables.attention import KV_DTYPES, matrix
from mist.perf.tables.files import Rows, System, rows
from mist.perf.tables.grid import Grid, decode_grid, prompt_grid

MODULE = (7168, 1536, 512, 64, 128)  # hidden, q_latent, kv_latent, rope, head: DeepSeek-V3, the one timed as a module
KERNEL = MODULE[2:4]  # kernels see only the latent and the rotary part
GEMM_TYPES = {"bf16": "bfloat16", "fp8": "fp8_block"}


class Latent(NamedTuple):
    """Seconds of one layer: by prompts and their length, and by decodes and tokens attended to."""

    prompt: Grid
    decode: Grid
    module: bool  # with all projections


def latent_attention(system: System, model: ModelSpec, heads: int) -> Latent:
    """Of ``heads`` heads on one device."""
    kv = KV_DTYPES.get(model.kv_dtype, model.kv_dtype)
    shape = (model.hidden, model.q_latent, model.kv_latent, model.rope_head_dim, model.head_dim)
    wanted = {"kv_cache_dtype": kv, "num_heads": heads}
    if shape == MODULE:
        kind = GEMM_TYPES.get(model.weight_dtype, model.weight_dtype)
        prompt = _found(system, "mla_context_module_perf", gemm_type=kind, **wanted)
        decode = _found(system, "mla_generation_module_perf", gemm_type=kind, **wanted)
        if prompt is not None and decode is not None:
            return Latent(prompt_grid(*matrix(prompt)), decode_grid(*matrix(decode)), True)
    if shape[2:4] == KERNEL:
        prompt = _found(system, "context_mla_perf", **wanted)
        decode = _found(system, "generation_mla_perf", **wanted)
        if prompt is not None and decode is not None:
            return Latent(prompt_grid(*matrix(prompt)), decode_grid(*matrix(decode)), False)
    raise system.refuse(f"latent attention of {model.name} with {heads} heads on a device and a {kv} cache")


def _found(system: System, file: str, **wanted: object) -> Rows | None:
    for path in system.newest("mla", file):
        found = rows(path, **wanted)
        if len(np.unique(found["latency"])) > 3:
            return found
    return None
