"""Prefix caching of hybrid models: the size of blocks and states, and for whom it is modelled."""

from math import ceil

from mist.errors import InputError
from mist.perf.base import Replica
from mist.policy import Scheduler
from mist.schedulers.chunked_prefill import ChunkedPrefill
from mist.schedulers.slo_aware import SLOAware
from mist.schedulers.vllm_v1 import VllmV1


def aligned_block(replica: Replica) -> int:
    """Tokens of a block that prefix caching takes for a hybrid model: a layer's cache of so many holds a layer's state.

    A multiple of the engine's own blocks (vLLM, "Setting attention block size to 528 tokens to ensure that attention
    page size is >= mamba page size": ``_align_hybrid_block_size``).
    """
    model, own = replica.model, replica.engine.block_tokens
    shards = 1 if model.kv_latent else min(replica.tp, model.kv_heads)
    token = model.kv_bytes_per_token_per_layer / shards
    return max(ceil(model.state_bytes_per_layer / replica.tp / token / own), 1) * own


def state_blocks(replica: Replica) -> int:
    """Blocks of that size that the states of one sequence take: one for every group of as many layers as have a cache
    (vLLM documentation, "Hybrid KV Cache Manager")."""
    model = replica.model
    return ceil(model.linear_layers / model.attention_layers)


def check_prefix_states(replica: Replica, scheduler: Scheduler, drafts: int) -> None:
    """InputError where prefixes of a hybrid model cannot be cached as vLLM does it."""
    model, engine = replica.model, replica.engine

    def refuse(why: str) -> InputError:
        return InputError("prefix_caching", "true", f"{why} ({model.name} has linear attention)", ["false"])

    if not model.attention_layers:
        raise refuse("no layer has a cache")
    if engine.kernels != "vllm":
        raise refuse(f"states are kept as vLLM keeps them; what {engine.name} does is not modelled")
    if drafts:
        raise refuse("the states of rejected drafts are not modelled")
    if not _cuts_prompts(scheduler):
        raise refuse(f"states are kept where chunks of a prompt end, and {type(scheduler).__name__} cuts none")
    block = aligned_block(replica)
    for field in ("token_budget", "long_prefill_threshold"):
        most = getattr(scheduler, field)
        if most < block and (most or field == "token_budget"):
            why = f"no step could fill a block of {block} tokens, which the state of a layer of {model.name} takes"
            raise InputError(f"scheduler.{field}", most, f"{why}, with prefix_caching=true")


def _cuts_prompts(scheduler: Scheduler) -> bool:
    if isinstance(scheduler, VllmV1):
        return scheduler.chunked
    return isinstance(scheduler, ChunkedPrefill | SLOAware)
