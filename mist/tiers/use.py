"""What tiers did over a run."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TierUse:
    """One tier, all its stores together."""

    reads: int  # fetches that took something from it
    hit_tokens: int  # fetched from it
    read_bytes: float
    written_bytes: float
    transfer_time: float  # s, mean of its reads, lookup and latency included
    transfer_time_p99: float
    wait: float  # s, mean of what its reads took longer than they would have alone
    peak: float | None  # most bytes ever kept over capacity, fullest store; None where it is endless or hits are drawn
    evicted: int = 0  # blocks that went for lack of room
    expired: int = 0  # blocks not used for too long
    lost: int = 0  # blocks that went with their replica
    turned_away: int = 0  # blocks not kept, since all room was being written to


@dataclass(frozen=True)
class TiersUse:
    """What requests found behind the device, and what became of it."""

    tiers: Mapping[str, TierUse]
    requests: int  # that asked
    found: int  # of those, whose prompt went on in some tier
    fetched: int  # of those, that were fetched and not computed again
    fetched_tokens: int
    recomputed_tokens: int  # found, and computed again because the policy said so
    wasted_tokens: int  # fetched, and of no use when their request was admitted
    lost_tokens: int = 0  # fetched for requests that left before admission: their replica failed, or they were aborted
