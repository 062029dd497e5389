"""What fits a replica's memory: weights, activations, and the KV blocks in what is left."""

from mist.errors import ImpossibleLayout, Infeasible
from mist.perf.base import Replica


def check_layout(replica: Replica) -> None:
    """Raises ImpossibleLayout if the model cannot be cut into ``tp`` equal parts on this hardware."""
    model, hardware, tp, _ = replica
    possible = [
        str(n)
        for n in range(1, hardware.scale_up_devices + 1)
        if model.heads % n == 0 and (model.kv_heads % n == 0 or n % model.kv_heads == 0)
    ]
    if str(tp) in possible:
        return
    if tp > hardware.scale_up_devices:
        why = f"{hardware.name} has at most {hardware.scale_up_devices} devices in one scale-up domain"
    else:
        why = f"{model.name} has {model.heads} heads and {model.kv_heads} KV heads, which {tp} does not divide"
    raise ImpossibleLayout("tp", tp, why, possible)


def kv_blocks(replica: Replica, tokens: int, requests: int) -> int:
    """KV blocks of one replica; raises Infeasible, with the numbers, where not even one is left.

    ``tokens`` is the largest step, ``requests`` the largest batch. Capacity is memory x utilisation, less
    weights, the activation peak of the largest step (residual, one MLP intermediate and float32 logits are
    alive together) and the engine's reserve, as vLLM computes it from a profiling run.
    """
    model, hardware, tp, engine = replica
    weights = model.weight_bytes
    if weights > tp * hardware.memory:
        raise Infeasible(
            f"{model.name} needs {weights / 1e9:.0f} GB of weights, "
            f"{tp} x {hardware.name} hold {tp * hardware.memory / 1e9:.0f} GB"
        )
    width = max(model.intermediate, model.experts_per_token * model.expert_intermediate)
    activations = tokens * (4 * model.hidden + 2 * width / tp) * 2.0 + requests * model.vocabulary / tp * 4.0
    usable = hardware.memory * engine.memory_utilization
    left = usable - weights / tp - activations - engine.reserve
    blocks = int(left // block_bytes(replica))
    if blocks <= engine.reserved_blocks:
        raise Infeasible(
            f"{model.name} leaves no memory for KV cache: of {usable / 1e9:.1f} GB usable on each of {tp} x "
            f"{hardware.name}, weights take {weights / tp / 1e9:.1f}, activations {activations / 1e9:.1f} "
            f"and the engine {engine.reserve / 1e9:.1f}"
        )
    return blocks


def block_bytes(replica: Replica) -> float:
    """Bytes of one KV block on each device: heads are spread over them, a latent (MLA) is on every one."""
    model, _, tp, engine = replica
    shards = 1 if model.kv_latent else min(tp, model.kv_heads)
    return engine.block_tokens * model.kv_bytes_per_token / shards
