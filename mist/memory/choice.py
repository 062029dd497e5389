"""Which KV pool a replica has, and what its pools did."""

from collections.abc import Sequence
from typing import Literal

from mist.errors import InputError
from mist.memory.pool import BlockPool
from mist.memory.prefix import PrefixPool, PrefixUse
from mist.memory.states import StatePool
from mist.memory.swap import HostMemory, SwapPool, SwapUse

Preemption = Literal["recompute", "swap"]

SWAP_SPACE = 4 * 2.0**30  # bytes per device; vLLM 0.6 engine arguments, --swap-space


def check_memory(prefix_caching: bool, preemption: Preemption, swap_space: float | None, role: str) -> None:
    """Raises InputError for an option that could do nothing."""
    if prefix_caching and role == "decode":
        why = "a decode pool is sent whole caches and looks nothing up; cache prefixes in the prefill pool"
        raise InputError("prefix_caching", "true", why)
    if prefix_caching and preemption == "swap":
        raise InputError("preemption", "swap", "prefix caching keeps what it can on the device and recomputes the rest")
    if swap_space is not None and preemption != "swap":
        raise InputError("swap_space", swap_space, "has no effect unless preemption=swap")
    if swap_space is not None and swap_space <= 0:
        raise InputError("swap_space", swap_space, "must be positive")


def make_pool(
    total: int, block_tokens: int, prefix_caching: bool, host: HostMemory | None, state_blocks: int = 0
) -> BlockPool:
    """A pool of ``total`` blocks; ``host`` is where evicted ones go, if anywhere.

    ``state_blocks`` is what a kept state of linear attention takes; 0 where the model has none.
    """
    if host is not None:
        return SwapPool(total, block_tokens, host)
    if prefix_caching and state_blocks:
        return StatePool(total, block_tokens, state_blocks)
    return (PrefixPool if prefix_caching else BlockPool)(total, block_tokens)


def prefix_use(pools: Sequence[BlockPool]) -> PrefixUse | None:
    """Lookups of all replicas together; None where nothing is cached."""
    uses = [pool.use() for pool in pools if isinstance(pool, PrefixPool)]
    return PrefixUse(sum(u.hit_tokens for u in uses), sum(u.looked_up_tokens for u in uses)) if uses else None


def swap_use(pools: Sequence[BlockPool]) -> SwapUse | None:
    """Swapping of all replicas together; None where nothing is swapped."""
    uses = [pool.use() for pool in pools if isinstance(pool, SwapPool)]
    if not uses:
        return None
    return SwapUse(
        sum(u.out_bytes for u in uses),
        sum(u.in_bytes for u in uses),
        max(u.host_peak for u in uses),
        sum(u.recomputed for u in uses),
    )
