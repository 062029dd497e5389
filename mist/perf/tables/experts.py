"""Routed experts as one fused operator, router and shared experts apart."""

from functools import partial
from typing import Literal, NamedTuple

from mist.hardware import HardwareSpec
from mist.model import ModelSpec
from mist.perf.tables.curve import Curve, least, through
from mist.perf.tables.files import MILLISECOND, System, rows
from mist.perf.tables.grouped import Shape, law, suffices, transferred
from mist.perf.tables.timings import shapes, usual

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
# Where an engine's kernels of a dtype were not timed on a device at all: an engine and dtype with kernels like them.
# Triton's of FP8 in blocks (SGLang's began as vLLM's): where both were timed, vLLM's take 0.98 to 1.08 times as long at
# the median. Marlin's of 4 bits, whose codes are looked up (MXFP4) or scaled (INT4) on the way to a 16-bit product: on
# H100 and H200, which have both, MXFP4 told from SGLang's ten INT4 shapes is off by 13 to 31 %.
LIKE = {
    ("sglang", "fp8_block"): ("vllm", "fp8_block"),
    ("vllm", "w4a16_mxfp4"): ("sglang", "int4_wo"),
    ("sglang", "w4a16_mxfp4"): ("sglang", "int4_wo"),
}


class Cut(NamedTuple):
    """How a layer's experts lie on its devices."""

    parts: int  # of every expert
    groups: int  # that share the experts
    distribution: Distribution  # how evenly the router spreads the tokens that were timed


def experts(system: System, hardware: HardwareSpec, model: ModelSpec, cut: Cut) -> Curve:
    """Seconds over the tokens of the whole group.

    The busiest device is timed. Kernels of one dtype differ by how weights are scaled, and some were timed untuned: FP8
    with one scale a matrix takes four times as long on H100 and H200 with vLLM 0.24 as with 0.19, and longer than 16
    bits. So the least of a dtype's kernels counts, and no more than 16-bit weights take. A shape that was not timed is
    transferred from those that were.
    """
    dtype = model.expert_dtype or model.weight_dtype
    own: list[Curve] = []
    for group in EXPERT_DTYPES.get(dtype, ()):
        own = own or [curve for kind in group for curve in _timed(system, model, kind, cut)]
    if own:
        return least(own if dtype == "bf16" else [*own, *_timed(system, model, "bfloat16", cut)])
    unseen = partial(_unseen, system, hardware, model, cut)
    for group in EXPERT_DTYPES.get(dtype, ()):
        own = own or [curve for kind in group for curve in unseen(kind)]
    if not own:
        size = f"hidden {model.hidden}, width {model.expert_intermediate}, {model.experts_per_token} of {model.experts}"
        where = f"cut {cut.parts} ways in {cut.groups} groups, {cut.distribution}"
        raise system.refuse(f"{dtype} experts ({size}) {where}, nor enough other shapes to tell them from")
    if dtype != "bf16":
        own += _timed(system, model, "bfloat16", cut) or unseen("bfloat16")
    return least(own, "transferred")


def _timed(system: System, model: ModelSpec, kind: str, cut: Cut) -> list[Curve]:
    """Of the newest version that has this shape, for each engine whose kernels count."""
    wanted = {
        "hidden_size": model.hidden,
        "inter_size": model.expert_intermediate,
        "topk": model.experts_per_token,
        "num_experts": model.experts,
        "moe_tp_size": cut.parts,
        "moe_ep_size": cut.groups,
        "distribution": cut.distribution,
    }
    curves = []
    for kernels in SHARED.get((system.kernels, kind), (system.kernels,)):
        for path in system.newest("moe", "moe_perf", kernels):
            found = rows(path, moe_dtype=kind, **wanted)
            if len(found):
                curves.append(through(found["num_tokens"], found["latency"] * MILLISECOND))
                break
    return curves


def _unseen(system: System, hardware: HardwareSpec, model: ModelSpec, cut: Cut, kind: str) -> list[Curve]:
    """Transferred from other shapes of this engine or, where it has no kernels of this dtype, of one like it."""
    shape = Shape(model.hidden, model.expert_intermediate, model.experts_per_token, model.experts)
    like = system.kernels, kind
    if not any(len(rows(path, moe_dtype=kind)) for path in system.newest("moe", "moe_perf", system.kernels)):
        like = LIKE.get(like, like)
    timed = usual(shapes(system, *like, cut.groups, cut.distribution))
    if not suffices(timed, shape):
        return []
    known, own = (law(hardware, each, timed, cut.groups) for each in (like[1], kind))
    return [transferred(timed, known, own._replace(matrices=model.mlp_matrices), shape, cut.parts)]
