"""Routed experts as one fused operator, router and shared experts apart."""

from typing import Literal

from mist.model import ModelSpec
from mist.perf.tables.curve import Curve, least, through
from mist.perf.tables.files import MILLISECOND, System, rows

Distribution = Literal["balanced", "power_law_1.01", "power_law_1.2"]
# Kernels for each stored dtype: the first group of which anything was timed counts, and the least within it.
EXPERT_DTYPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "bf16": (("bfloat16",),),
    "fp8": (("fp8_block", "fp8"),),
    "int4": (("int4_wo",),),
    "fp4": (("w4a16_mxfp4",), ("nvfp4",), ("w4a8_mxfp4_mxfp8",)),
}
# On Hopper SGLang runs MXFP4 experts with the same kernels of OpenAI's as vLLM does; its table was timed with weights
# widened to 16 bits before (as many bytes are read), which no server does.
SHARED = {("sglang", "w4a16_mxfp4"): ("sglang", "vllm")}


def experts(system: System, model: ModelSpec, tp: int, ep: int, distribution: Distribution) -> Curve:
    """Seconds over the tokens of the whole group: experts in ``ep`` groups, each cut ``tp`` ways.

    ``distribution`` says how evenly the router spreads the timed tokens; the busiest device is timed. Kernels of
    one dtype differ by how weights are scaled, and some were timed untuned: FP8 with one scale a matrix takes four
    times as long on H100 and H200 with vLLM 0.24 as with 0.19, and longer than 16 bits. So the least of a dtype's
    kernels counts, and no more than 16-bit weights take.
    """
    dtype = model.expert_dtype or model.weight_dtype
    cut: dict[str, object] = {"moe_tp_size": tp, "moe_ep_size": ep, "distribution": distribution}
    own: list[Curve] = []
    for group in EXPERT_DTYPES.get(dtype, ()):
        own = own or [curve for kind in group for curve in _timed(system, model, kind, cut)]
    if not own:
        size = f"hidden {model.hidden}, width {model.expert_intermediate}, {model.experts_per_token} of {model.experts}"
        raise system.refuse(f"{dtype} experts ({size}) cut {tp} ways in {ep} groups, {distribution}")
    return least(own if dtype == "bf16" else [*own, *_timed(system, model, "bfloat16", cut)])


def _timed(system: System, model: ModelSpec, kind: str, cut: dict[str, object]) -> list[Curve]:
    """Of the newest version that has this shape, for each engine whose kernels count."""
    shape = {
        "hidden_size": model.hidden,
        "inter_size": model.expert_intermediate,
        "topk": model.experts_per_token,
        "num_experts": model.experts,
    }
    curves = []
    for kernels in SHARED.get((system.kernels, kind), (system.kernels,)):
        for path in system.newest("moe", "moe_perf", kernels):
            found = rows(path, moe_dtype=kind, **cut, **shape)
            if len(found):
                curves.append(through(found["num_tokens"], found["latency"] * MILLISECOND))
                break
    return curves
