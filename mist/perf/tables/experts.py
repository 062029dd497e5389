"""Routed experts as one fused operator, router and shared experts apart."""

from typing import Literal

from mist.model import ModelSpec
from mist.perf.tables.curve import Curve, through
from mist.perf.tables.files import MILLISECOND, System, rows

Distribution = Literal["balanced", "power_law_1.01", "power_law_1.2"]
EXPERT_DTYPES: dict[str, tuple[str, ...]] = {
    "bf16": ("bfloat16",),
    "fp8": ("fp8", "fp8_block"),
    "int4": ("int4_wo",),
    "fp4": ("w4a16_mxfp4", "nvfp4", "w4a8_mxfp4_mxfp8"),
}


def experts(system: System, model: ModelSpec, tp: int, ep: int, distribution: Distribution) -> Curve:
    """Seconds over the tokens of the whole group: experts in ``ep`` groups, each cut ``tp`` ways.

    ``distribution`` says how evenly the router spreads the timed tokens; the busiest device is timed.
    """
    dtype = model.expert_dtype or model.weight_dtype
    shape = {
        "hidden_size": model.hidden,
        "inter_size": model.expert_intermediate,
        "topk": model.experts_per_token,
        "num_experts": model.experts,
    }
    for kind in EXPERT_DTYPES.get(dtype, ()):
        for path in system.newest("moe", "moe_perf"):
            found = rows(path, moe_dtype=kind, moe_tp_size=tp, moe_ep_size=ep, distribution=distribution, **shape)
            if len(found):
                return through(found["num_tokens"], found["latency"] * MILLISECOND)
    size = f"hidden {model.hidden}, width {model.expert_intermediate}, {model.experts_per_token} of {model.experts}"
    raise system.refuse(f"{dtype} experts ({size}) cut {tp} ways in {ep} groups, {distribution}")
