"""Session sticky: all requests of a session to one replica."""

from dataclasses import dataclass
from hashlib import blake2b

from mist.policy import RouteView

MASK = 2**64 - 1


@dataclass(frozen=True)
class SessionSticky:
    """Consistent hashing of the session: replicas that come or go move only the sessions that must.

    Of all replicas the one whose hash together with the session is highest (Thaler and Ravishankar, "Using
    Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 6(1), 1998): spreads sessions as evenly as a ring
    (Karger et al., STOC 1997) with endlessly many points. A request that belongs to no session is one of its own.
    """

    def choose(self, view: RouteView) -> int:
        digest = blake2b(repr(view.session).encode(), digest_size=8).digest()
        session = int.from_bytes(digest, "little")
        return max(range(len(view.replicas)), key=lambda place: mixed(session, view.replicas[place]))


def mixed(session: int, replica: int) -> int:
    """Sixty-four well-mixed bits of both (Steele, Lea and Flood, "SplitMix", OOPSLA 2014, figure 16)."""
    z = (session + (replica + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)
