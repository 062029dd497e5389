"""Collectives as timed: custom all-reduce kernels, and NCCL."""

from functools import cache
from pathlib import Path

import numpy as np

from mist.perf.base import Replica
from mist.perf.collective import allreduce, exchange, fabric
from mist.perf.tables.curve import Curve, Floats, line, through
from mist.perf.tables.files import MILLISECOND, System, rows

SIZES = 2.0 ** np.arange(7, 30)  # elements
ELEMENT = 2.0  # bytes: activations are summed in 16 bits
FRAMEWORKS = ("vllm", "sglang", "trtllm")
# Bytes up to which vLLM fuses the norm, by devices: vllm/compilation/passes/fusion/allreduce_rms_fusion.py 0.16,
# FI_ALLREDUCE_FUSION_MAX_SIZE_MB, for compute capabilities 9.0 and 10.0.
_MIB = 2.0**20
_HOPPER = {2: 64 * _MIB, 4: 2 * _MIB, 8: 0.5 * _MIB}
_BLACKWELL = {2: 64 * _MIB, 4: 32 * _MIB, 8: 1 * _MIB}
FUSED_BYTES = {
    **dict.fromkeys(("h100_sxm", "h200_sxm"), _HOPPER),
    **dict.fromkeys(("b200_sxm", "b300_sxm", "gb200", "gb300"), _BLACKWELL),
}


def reduction(system: System, replica: Replica, efficiency: float) -> Curve:
    """Seconds over elements to sum activations over the ``tp`` devices of a replica.

    Engines choose by size between the custom kernel and NCCL, so the lesser of the two is taken; kernels are timed
    inside a CUDA graph (the tables have eager launches too, which a device that is never idle does not wait for).
    Without peer access (``node.peer_to_peer``) there is no custom kernel, and of all machines that the
    tables were timed on the slowest counts: some had peer access and some had not, a factor of three apart.
    """
    devices = replica.tp
    if devices > replica.domain or devices > 8:
        return _modelled(replica, devices, efficiency)
    timed = _custom(system, devices), nccl(system, "all_reduce", devices)
    known = [np.interp(SIZES, curve.x, curve.y) for curve in timed if curve is not None]
    if replica.node.peer_to_peer:
        if not known:
            return _modelled(replica, devices, efficiency)
        return through(SIZES, np.min(known, axis=0))
    staged = fabric(replica, 1.0)
    floor = np.array([allreduce(staged, size * ELEMENT, devices) for size in SIZES])
    return through(SIZES, np.max([*_every(system, devices), *known, floor], axis=0), "interpolated")


def fused_reduction(system: System, replica: Replica, apart: Curve, norm: Curve) -> Curve | None:
    """Seconds over elements to sum activations, add the residual and normalise, in one kernel up to a size.

    vLLM takes FlashInfer's, which is TensorRT-LLM's, on Hopper and Blackwell (vLLM documentation, "Fusion
    torch.compile passes", AllReduce + RMSNorm): that engine's table, where the norm hides in the
    exchange. Larger sums are ``apart`` from their norms. None where there is no such kernel.
    """
    if not fuses(replica):
        return None
    most, together = FUSED_BYTES[system.name][replica.tp], _custom(system._replace(kernels="trtllm"), replica.tp)
    if together is None:
        return None
    sizes = np.sort(np.append(SIZES, most / ELEMENT + 1))
    seconds = [together(size) if size * ELEMENT <= most else apart(size) + norm(size) for size in sizes]
    return through(sizes, seconds)


def fuses(replica: Replica) -> bool:
    """Whether there is a kernel that sums, adds the residual and normalises, for these devices and so many of them."""
    timed = replica.tp in FUSED_BYTES.get(replica.hardware.tables, {})
    return timed and replica.node.peer_to_peer and replica.tp <= replica.domain


def gathering(system: System, op: str, replica: Replica, devices: int, efficiency: float) -> Curve:
    """Seconds over elements of the whole message to gather, or reduce and scatter, over ``devices``."""
    curve = nccl(system, op, devices) if devices <= replica.domain and replica.node.peer_to_peer else None
    if curve is not None:
        return curve
    links = fabric(replica, efficiency)
    once, large = (exchange(links, size * ELEMENT * (devices - 1) / devices, devices) for size in (0.0, 1e9))
    return line((large - once) / 1e9, once)


def nccl(system: System, op: str, devices: int) -> Curve | None:
    """Seconds over elements; None where NCCL was not timed on so many devices."""
    for path in system.newest("comm", "nccl_perf", "nccl"):
        found = rows(path, op_name=op, num_gpus=devices, nccl_dtype="half")
        if len(found):
            return through(found["message_size"], found["latency"] * MILLISECOND)
    return None


def _custom(system: System, devices: int) -> Curve | None:
    for path in system.newest("comm", "custom_allreduce_perf"):
        curve = _graph(path, devices)
        if curve is not None:
            return curve
    return None


@cache
def _graph(path: Path, devices: int) -> Curve | None:
    found = rows(path, num_gpus=devices)
    if "backend" in found:
        graph = [word for word in found.words["backend"] if word.endswith("graph")]
        found = found.which(backend=graph[0] if graph else "")
    if not len(found):
        return None
    return through(found["message_size"], found["latency"] * MILLISECOND)


def _every(system: System, devices: int) -> list[Floats]:
    """Of every version of every framework."""
    paths = [path for name in FRAMEWORKS for path in system.newest("comm", "custom_allreduce_perf", name)]
    curves = [_graph(path, devices) for path in paths]
    return [np.interp(SIZES, curve.x, curve.y) for curve in curves if curve is not None]


def _modelled(replica: Replica, devices: int, efficiency: float) -> Curve:
    links = fabric(replica, efficiency)
    times = tuple(allreduce(links, size * ELEMENT, devices) for size in SIZES)
    return Curve(tuple(map(float, SIZES)), times, "analytical")
