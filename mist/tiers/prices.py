"""What the stores of tiers cost."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from mist.spans import Span, mean_replicas, paid
from mist.tiers.spec import Tier, Tiers, store, tiers_of
from mist.topology import Network


def stores(tier: Tier, network: Network, nodes: Mapping[int, int]) -> dict[str, set[int]]:
    """The stores of a tier, each with the replicas that use it; ``nodes`` are those of all replicas, by number."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for replica, node in nodes.items():
        found[store(tier, replica, network, node)].add(replica)
    return found


def tier_dollars(tiers: Tiers, network: Network, nodes: Mapping[int, int]) -> float:
    """Dollars per hour of all stores that these replicas use."""
    return sum(tier.price * len(stores(tier, network, nodes)) for tier in tiers_of(tiers).values())


def mean_tier_dollars(  # noqa: PLR0917
    tiers: Tiers, network: Network, node: Callable[[Span], int], spans: Sequence[Span], start: float, end: float
) -> float:
    """The same where replicas come and go, on average from ``start`` to ``end``: a store is paid while one uses it.

    ``node`` is where a replica stood in a span.
    """
    dollars = 0.0
    for tier in tiers_of(tiers).values():
        users: defaultdict[str, list[Span]] = defaultdict(list)
        for span in spans if tier.price else ():
            users[store(tier, span.replica, network, node(span))].append(span)
        dollars += sum(tier.price * mean_replicas(_together(own), start, end) for own in users.values())
    return dollars


def _together(spans: Sequence[Span]) -> list[Span]:
    """When there was any of these replicas, as spans of one."""
    found: list[Span] = []
    since: float | None = None
    for time, count in paid(spans):
        if count and since is None:
            since = time
        elif not count and since is not None:
            found.append(Span(0, "up", since, time))
            since = None
    return found
