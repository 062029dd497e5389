"""Kernels of latent attention without the products around them, where they were not timed by themselves."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mist.hardware import HardwareSpec
from mist.model import BYTES_PER_ELEMENT, ModelSpec
from mist.perf.tables.attention import KV_DTYPES, matrix
from mist.perf.tables.curve import Floats
from mist.perf.tables.files import Rows, System, rows
from mist.perf.tables.gemm import gemm
from mist.perf.tables.grid import Grid, decode_grid, prompt_grid

MODULE = (7168, 1536, 512, 64, 128)  # hidden, q_latent, kv_latent, rope, head: DeepSeek-V3, the one timed as a module
KERNEL = MODULE[2:4]  # kernels see only the latent and the rotary part
# Whose bare kernels are like those of an engine of which not even modules were timed, by what the tables call them:
# Triton's over the latent in a decode step, FlashAttention over keys and values in a prompt step. On RTX PRO 6000,
# where vLLM's modules were timed too, these and the projections take 0.75 to 1.02 and 0.83 to 0.85 times as long.
LIKE = {"vllm": ("trtllm", "sglang")}  # prompt, decode


class Latent(NamedTuple):
    """Seconds of one layer: by prompts and their length, and by decodes and tokens attended to."""

    prompt: Grid
    decode: Grid
    module: bool = False  # with all projections
    fused: bool = False  # with rotary embedding, norms and the writing of the cache


def found(system: System, file: str, **wanted: object) -> Rows | None:
    """Rows of the newest version that has these; None where there are none, or a column of one value."""
    for path in system.newest("mla", file):
        timed = rows(path, **wanted)
        if len(np.unique(timed["latency"])) > 3:
            return timed
    return None


def latent_shapes(model: ModelSpec, heads: int) -> dict[str, tuple[int, int]]:
    """The products (n, k) around the kernels, with ``heads`` heads on a device."""
    value = model.value_head_dim or model.head_dim
    queries = heads * (model.head_dim + model.rope_head_dim)
    shapes = {
        "latent projection": (model.kv_latent + model.rope_head_dim + (model.q_latent or queries), model.hidden),
        "latent expansion": (heads * (model.head_dim + value), model.kv_latent),
        "output projection": (model.hidden, heads * value),
    }
    return shapes | ({"query projection": (queries, model.q_latent)} if model.q_latent else {})


def less_projections(system: System, hardware: HardwareSpec, model: ModelSpec, heads: int) -> Latent | None:
    """The kernels within the module of DeepSeek-V3, which are the same for any width: less its products in 16 bits.

    Rotary embedding and norms stay within. No faster than the memory delivers the latents, or the device multiplies.
    """
    wanted = {
        "kv_cache_dtype": KV_DTYPES.get(model.kv_dtype, model.kv_dtype),
        "num_heads": heads,
        "gemm_type": "bfloat16",
    }
    prompt = found(system, "mla_context_module_perf", **wanted)
    decode = found(system, "mla_generation_module_perf", **wanted)
    if prompt is None or decode is None:
        return None
    hidden, query, latent, rope, size = MODULE
    timed = replace(model, hidden=hidden, q_latent=query, kv_latent=latent, rope_head_dim=rope, head_dim=size)
    products = [gemm(system, "bf16", n, k) for n, k in latent_shapes(timed, heads).values()]

    def around(tokens: float) -> float:
        return sum(curve(tokens) for curve in products)

    cached = (latent + rope) * BYTES_PER_ELEMENT[model.kv_dtype] / hardware.memory_bandwidth  # s per cached token
    pair = heads * (2 * size + rope) * 2 / hardware.peak("bf16")  # s per query and key
    batches, lengths, seconds = matrix(decode)
    decoded = np.maximum(seconds - _over(batches, around)[:, None], np.outer(batches, lengths) * cached)
    starts, sizes, whole = matrix(prompt)
    counts = np.outer(starts, sizes)
    prompted = np.maximum(whole - _over(counts, around), counts * sizes / 2 * pair)
    return Latent(
        prompt_grid(starts, sizes, prompted, "transferred"),
        decode_grid(batches, lengths, decoded, "transferred"),
        fused=True,
    )


def _over(counts: Floats, function: Callable[[float], float]) -> Floats:
    return np.array([function(count) for count in counts.ravel()]).reshape(counts.shape)


def like(system: System, wanted: dict[str, object]) -> Latent | None:
    """Bare kernels of other engines that are like this one's."""
    prompts, decodes = LIKE.get(system.kernels, ("", ""))
    prompt = found(system._replace(kernels=prompts), "context_mla_perf", **wanted)
    decode = found(system._replace(kernels=decodes), "generation_mla_perf", **wanted)
    if prompt is None or decode is None:
        return None
    return Latent(prompt_grid(*matrix(prompt), "transferred"), decode_grid(*matrix(decode), "transferred"))
