"""Session sticky: all requests of a session to one replica."""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mist.policy import RouteView

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # the odd number nearest 2^64 over the golden ratio
ROUNDS = (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))
LAST = np.uint64(31)


@dataclass(frozen=True)
class SessionSticky:
    """Consistent hashing of the session: replicas that come or go move only the sessions that must.

    Of all replicas the one whose hash together with the session is highest (Thaler and Ravishankar, "Using
    Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 6(1), 1998): spreads sessions as evenly as a ring
    (Karger et al., STOC 1997) with endlessly many points. A request that belongs to no session is one of its own.
    """

    def choose(self, view: RouteView) -> int:
        digest = blake2b(repr(view.session).encode(), digest_size=8).digest()
        return int(mixed(np.frombuffer(digest, "<u8") + gammas(tuple(view.replicas))).argmax())


def mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sixty-four well-mixed bits of each (Steele, Lea and Flood, "SplitMix", OOPSLA 2014, figure 16)."""
    for shift, factor in ROUNDS:
        z = (z ^ (z >> shift)) * factor
    return z ^ (z >> LAST)


@lru_cache(maxsize=256)
def gammas(replicas: tuple[int, ...]) -> NDArray[np.uint64]:
    """How far each replica is from a session on the way through all 64-bit numbers."""
    return (np.array(replicas, np.uint64) + np.uint64(1)) * GAMMA
