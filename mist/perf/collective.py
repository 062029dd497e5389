"""Collectives: within a scale-up domain, through host memory, and between nodes."""

from typing import NamedTuple

from mist.perf.base import Replica


class Fabric(NamedTuple):
    """What a device sends over, one way, bytes/s and s: to its own domain and to other nodes."""

    devices: int  # of a domain
    bandwidth: float
    latency: float
    out_bandwidth: float
    out_latency: float
    staged: bool = False  # through host memory


def fabric(replica: Replica, efficiency: float) -> Fabric:
    """The replica's, with ``efficiency`` the share of the published bandwidths that collectives reach.

    Without peer-to-peer access every message is written to host memory and read from there (NCCL
    documentation, NCCL_P2P_DISABLE and NCCL_SHM_DISABLE): it crosses the bus twice, one after the other, so
    half the bandwidth and twice the latency are left.
    """
    hardware, node = replica.hardware, replica.node
    times = 1 if node.peer_to_peer else 2
    return Fabric(
        replica.domain,
        hardware.scale_up_bandwidth * efficiency / times,
        hardware.scale_up_latency * times,
        (node.bandwidth or hardware.scale_up_bandwidth) * efficiency,
        node.latency,
        staged=not node.peer_to_peer,
    )


def allreduce_time(payload: float, devices: int, bandwidth: float, latency: float) -> float:
    """Seconds to sum ``payload`` bytes over ``devices``, each sending ``bandwidth`` bytes/s one way.

    The faster of two algorithms, as engines choose by size: one shot (every device reads all the others'
    payloads: one latency, (p - 1) S / B; the custom all-reduce of vLLM and TensorRT-LLM) and ring
    (2 (p - 1) rounds of S / p; Thakur, Rabenseifner and Gropp, IJHPCA 19(1), 2005, section 4).
    """
    if devices == 1:
        return 0.0
    one_shot = latency + (devices - 1) * payload / bandwidth
    return min(one_shot, _ring_time(payload, devices, bandwidth, latency))


def _ring_time(payload: float, devices: int, bandwidth: float, latency: float) -> float:
    return 2 * (devices - 1) * (latency + payload / devices / bandwidth)


def allreduce(links: Fabric, payload: float, devices: int) -> float:
    """Seconds to sum ``payload`` bytes over ``devices``, wherever they are.

    Staged through host memory there is no one-shot algorithm (vLLM switches its custom all-reduce off without
    peer access). Over several nodes it is hierarchical: reduce-scatter in each node, all-reduce of each device's
    part with its peers in the other nodes, all-gather in each node (Jia et al., arXiv:1807.11205, section 4.3).
    """
    if devices == 1:
        return 0.0
    inside, bandwidth, latency = min(devices, links.devices), links.bandwidth, links.latency
    if devices > inside:
        within = _ring_time(payload, inside, bandwidth, latency)
        return within + allreduce_time(payload / inside, devices // inside, links.out_bandwidth, links.out_latency)
    if links.staged:
        return _ring_time(payload, devices, bandwidth, latency)
    return allreduce_time(payload, devices, bandwidth, latency)


def exchange(links: Fabric, sent: float, devices: int) -> float:
    """Seconds in which each of ``devices`` sends ``sent`` bytes, spread evenly over the others.

    All messages are under way together: one latency, and the busier of the two ways (all-to-all as in DeepEP,
    where each device uses its scale-up links and its own network port at once; also an all-gather in one shot).
    """
    if devices == 1:
        return 0.0
    outside = max(devices - links.devices, 0) / (devices - 1)
    inward = links.latency + sent * (1 - outside) / links.bandwidth
    return max(inward, links.out_latency + sent * outside / links.out_bandwidth) if outside else inward


def send(links: Fabric, payload: float, across: bool) -> float:
    """Seconds of one message from one device to one other, in its domain or ``across`` nodes."""
    if across:
        return links.out_latency + payload / links.out_bandwidth
    return links.latency + payload / links.bandwidth
