"""DeepEP: tokens sent straight to the devices of their experts and back (https://github.com/deepseek-ai/DeepEP)."""

from typing import Literal

from mist.model import ModelSpec
from mist.perf.tables.curve import Curve, through
from mist.perf.tables.files import Rows, System, rows

Exchange = Literal["gather", "deepep_low_latency", "deepep_high_throughput"]
MICROSECOND = 1e-6
NODE = 8  # devices of the one node it was timed on
SMS = 20  # streaming multiprocessors given to it, DeepEP's default (Buffer.num_sms)


def deepep(system: System, model: ModelSpec, devices: int, mode: Exchange) -> dict[str, Curve]:
    """Seconds to dispatch and to combine, over the tokens of all ``devices``.

    How much is sent depends on the width and on how many experts a token picks, hardly on how many there are: rows
    of any count do, and the least is taken.
    """
    if devices == NODE:
        timed = _sglang(system, model, mode) if system.kernels == "sglang" else _by_phase(system, model, mode)
        if timed:
            return {
                phase: through(found["tokens"] * devices, found["latency"] * MICROSECOND)
                for phase, found in timed.items()
            }
    what = f"{mode.replace('_', ' ')} of {model.experts_per_token} experts a token, {model.hidden} wide, over "
    raise system.refuse(f"{what}{devices} devices")


def _by_phase(system: System, model: ModelSpec, mode: Exchange) -> dict[str, Rows]:
    short = "deepep_ll" if mode == "deepep_low_latency" else "deepep_ht"
    kind = f"trtllm_{short}" if system.kernels == "trtllm" else short
    wanted = {"comm_backend": kind, "ep_size": NODE, "hidden_size": model.hidden, "topk": model.experts_per_token}
    found = {}
    for path in system.newest("comm", "moe_a2a_perf")[:1]:
        for phase in ("dispatch", "combine"):
            part = rows(path, phase=phase, **wanted)
            if len(part):
                found[phase] = Rows({"tokens": part["num_tokens"], "latency": part["latency"]}, {})
    return found


def _sglang(system: System, model: ModelSpec, mode: Exchange) -> dict[str, Rows]:
    file, column = ("ll", "avg_t_us") if mode == "deepep_low_latency" else ("normal", "transmit_us")
    wanted = {"node_num": 1, "hidden_size": model.hidden, "num_topk": model.experts_per_token}
    for path in system.newest("comm", f"wideep_deepep_{file}_perf"):
        part = rows(path, dispatch_sms=SMS, **wanted)
        tokens = part["num_token"]
        if len(tokens):
            return {
                phase: Rows({"tokens": tokens, "latency": part[f"{phase}_{column}"]}, {})
                for phase in ("dispatch", "combine")
            }
    return {}
