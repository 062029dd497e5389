"""What fits a replica's memory: weights, activations, and the KV blocks in what is left."""

from math import floor
from sys import maxsize

from mist.errors import ImpossibleLayout, Infeasible
from mist.model import BYTES_PER_ELEMENT, ModelSpec
from mist.perf.base import Replica
from mist.perf.stages import stages


def check_layout(replica: Replica) -> None:
    """Raises ImpossibleLayout, with the possible degrees, if the model cannot be cut so on this hardware."""
    _check_tp(replica)
    _check_experts(replica)
    _check_pp(replica)


def _check_tp(replica: Replica) -> None:
    model, tp, domain = replica.model, replica.tp, replica.domain
    way_out = replica.node.bandwidth is not None
    possible = [
        str(n)
        for n in range(1, (model.heads if way_out else domain) + 1)
        if model.heads % n == 0
        and (model.kv_heads % n == 0 or n % model.kv_heads == 0)
        and model.linear_key_heads % n == 0
        and (n <= domain or n % domain == 0)
    ]
    if str(tp) in possible:
        return
    if tp > domain and not way_out:
        why = f"{replica.hardware.name} has at most {domain} devices in one scale-up domain"
    elif tp > domain and tp % domain:
        why = f"does not fill nodes of {domain} devices"
    else:
        why = f"{model.name} has {model.heads} heads and {model.kv_heads} KV heads, which {tp} does not divide"
        if model.linear_key_heads % tp:
            why = f"{model.name} has {model.linear_key_heads} key heads of linear attention, which {tp} does not divide"
    raise ImpossibleLayout("tp", tp, why, possible)


def _check_experts(replica: Replica) -> None:
    model, dp, ep, group, domain = replica.model, replica.dp, replica.ep, replica.group, replica.domain
    if not model.experts:
        for field, value in (("dp", dp), ("ep", ep)):
            if value > 1:
                why = f"{model.name} has no experts to share" + ("; replicas do the same" if field == "dp" else "")
                raise ImpossibleLayout(field, value, why, ["1"])
    if group > domain and (replica.node.bandwidth is None or group % domain):
        most = [str(n) for n in range(1, domain // replica.tp + 1)] or ["1"]
        where = f"{domain} devices of one scale-up domain"
        why = f"tp x dp = {group} devices do not fit the {where}"
        if replica.node.bandwidth is not None:
            why = f"tp x dp = {group} devices fill no whole number of nodes of {domain}"
        raise ImpossibleLayout("dp", dp, why, most)
    possible = [str(n) for n in range(1, group + 1) if group % n == 0 and (n == 1 or model.experts % n == 0)]
    if str(ep) not in possible:
        why = f"must divide the {model.experts} experts of {model.name} and tp x dp = {group} devices"
        raise ImpossibleLayout("ep", ep, why, possible)


def _check_pp(replica: Replica) -> None:
    layers, pp, domain = replica.model.layers, replica.pp, replica.domain
    most = layers if replica.node.bandwidth is not None else min(layers, max(domain // replica.group, 1))
    if pp <= most:
        return
    why = f"{replica.model.name} has {layers} layers"
    if pp <= layers:
        why = f"{replica.devices} devices do not fit one scale-up domain of {domain}, and node {replica.node.name} "
        why += "has no way out"
    raise ImpossibleLayout("pp", pp, why, [str(n) for n in range(1, most + 1)])


def device_weights(replica: Replica) -> float:
    """Bytes of weights on each device: attention is copied ``dp`` times, routed experts are not."""
    model = replica.model
    if replica.dp == 1:
        return model.weight_bytes / replica.tp
    routed = model.routed_parameters * BYTES_PER_ELEMENT[model.expert_dtype or model.weight_dtype]
    return (model.weight_bytes - routed) / replica.tp + routed / replica.group


def kv_blocks(
    replica: Replica, tokens: int, requests: int, drafter: ModelSpec | None = None, beside: float = 0.0
) -> int:
    """KV blocks of one replica; raises Infeasible, with the numbers, where not even one is left.

    ``tokens`` is the largest step, ``requests`` the largest batch, of all ``dp`` copies together. Capacity is
    memory x utilisation, less weights, the activation peak of the largest step (residual, one MLP intermediate
    and float32 logits are alive together), a state for every request where there is linear attention (as SGLang sets
    it aside; vLLM takes it out of the blocks) and the engine's reserve, as vLLM computes it from a profiling run;
    of several pipeline stages the tightest decides. ``drafter``, for speculation, caches the same tokens and adds
    ``beside`` bytes of weights, shared by ``tp`` devices.
    """
    model, hardware, tp, engine, dp = replica.model, replica.hardware, replica.tp, replica.engine, replica.dp
    weights = device_weights(replica) + beside / tp
    if (replica.pp == 1 and weights > hardware.memory) or model.weight_bytes > replica.devices * hardware.memory:
        raise Infeasible(
            f"{model.name} needs {weights * replica.group / 1e9:.0f} GB of weights, "
            f"{replica.devices} x {hardware.name} hold {floor(replica.devices * hardware.memory / 1e9)} GB"
        )
    if replica.pp > 1:
        return min(kv_blocks(stage, tokens, requests) for stage in stages(replica))
    tokens, requests = -(-tokens // dp), -(-requests // dp)
    width = max(model.intermediate, model.experts_per_token * model.expert_intermediate)
    activations = tokens * (4 * model.hidden + 2 * width / tp) * 2.0 + requests * model.vocabulary / tp * 4.0
    usable = hardware.memory * engine.memory_utilization
    states = requests * model.state_bytes / tp
    left = usable - weights - activations - states - engine.reserve
    block = block_bytes(replica)
    if drafter is not None:
        shards = 1 if drafter.kv_latent else min(tp, drafter.kv_heads)
        block += engine.block_tokens * drafter.kv_bytes_per_token / shards
    blocks = int(left // block) if block else maxsize  # a pipeline stage of linear attention only
    if blocks <= engine.reserved_blocks:
        raise Infeasible(
            f"{model.name} leaves no memory for KV cache: of {usable / 1e9:.1f} GB usable on each of {replica.group} x "
            f"{hardware.name}, weights take {weights / 1e9:.1f}, activations {activations / 1e9:.1f} "
            + (f", {requests} states of linear attention {states / 1e9:.1f} " if states else "")
            + f"and the engine {engine.reserve / 1e9:.1f}"
        )
    return blocks * dp


def block_bytes(replica: Replica) -> float:
    """Bytes of one KV block on each device: heads are spread over them, a latent (MLA) is on every one."""
    model, tp, engine = replica.model, replica.tp, replica.engine
    shards = 1 if model.kv_latent else min(tp, model.kv_heads)
    return engine.block_tokens * model.kv_bytes_per_token / shards
