"""Collectives within a scale-up domain."""


def allreduce_time(payload: float, devices: int, bandwidth: float, latency: float) -> float:
    """Seconds to sum ``payload`` bytes over ``devices``, each sending ``bandwidth`` bytes/s one way.

    The faster of two algorithms, as engines choose by size: one shot (every device reads all the others'
    payloads: one latency, (p - 1) S / B; the custom all-reduce of vLLM and TensorRT-LLM) and ring
    (2 (p - 1) rounds of S / p; Thakur, Rabenseifner and Gropp, IJHPCA 19(1), 2005, section 4).
    """
    if devices == 1:
        return 0.0
    peers = devices - 1
    one_shot = latency + peers * payload / bandwidth
    ring = 2 * peers * (latency + payload / devices / bandwidth)
    return min(one_shot, ring)
