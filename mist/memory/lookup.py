"""What the prefix caches of several replicas hold of one request."""

from collections.abc import Sequence

from mist.memory.pool import BlockPool
from mist.memory.prefix import PrefixPool
from mist.request import Request


def cached_prefixes(pools: Sequence[BlockPool], request: Request) -> list[int]:
    """Tokens of a waiting request that each pool would find; a walk as long as the longest prefix found."""
    found = [0] * len(pools)
    left = [(place, pool) for place, pool in enumerate(pools) if isinstance(pool, PrefixPool)]
    for index in range((request.known - 1) // pools[0].block_tokens if left else 0):
        key = left[0][1].key(request, index)
        left = [(place, pool) for place, pool in left if pool.holds(key)]
        if not left:
            break
        for place, pool in left:
            found[place] = (index + 1) * pool.block_tokens
    return found
