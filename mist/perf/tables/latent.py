"""Multi-head latent attention: whole modules, projections included, or bare kernels."""

from mist.hardware import HardwareSpec
from mist.model import ModelSpec
from mist.perf.tables.attention import KV_DTYPES, matrix
from mist.perf.tables.bare import KERNEL, MODULE, Latent, found, less_projections, like
from mist.perf.tables.files import System
from mist.perf.tables.grid import decode_grid, prompt_grid

GEMM_TYPES = {"bf16": "bfloat16", "fp8": "fp8_block", "fp4": "nvfp4"}


def latent_attention(system: System, hardware: HardwareSpec, model: ModelSpec, heads: int) -> Latent:
    """Of ``heads`` heads on one device; kernels that were not timed apart are transferred."""
    kv = KV_DTYPES.get(model.kv_dtype, model.kv_dtype)
    shape = (model.hidden, model.q_latent, model.kv_latent, model.rope_head_dim, model.head_dim)
    wanted = {"kv_cache_dtype": kv, "num_heads": heads}
    if shape == MODULE:
        kind = GEMM_TYPES.get(model.weight_dtype, model.weight_dtype)
        prompt = found(system, "mla_context_module_perf", gemm_type=kind, **wanted)
        decode = found(system, "mla_generation_module_perf", gemm_type=kind, **wanted)
        if prompt is not None and decode is not None:
            return Latent(prompt_grid(*matrix(prompt)), decode_grid(*matrix(decode)), module=True, fused=True)
    if shape[2:4] == KERNEL:
        prompt = found(system, "context_mla_perf", **wanted)
        decode = found(system, "generation_mla_perf", **wanted)
        if prompt is not None and decode is not None:
            return Latent(prompt_grid(*matrix(prompt)), decode_grid(*matrix(decode)))
        transferred = less_projections(system, hardware, model, heads) or like(system, wanted)
        if transferred is not None:
            return transferred
    raise system.refuse(f"latent attention of {model.name} with {heads} heads on a device and a {kv} cache")
