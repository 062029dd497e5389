"""Prefix aware: to whom has most of the prompt cached already, unless that one is overloaded."""

from dataclasses import dataclass

from mist.errors import InputError
from mist.policy import RouteView
from mist.routers.least_requests import fewest_in_turn


@dataclass(frozen=True)
class PrefixAware:
    """The replica with most of the prompt in its prefix cache, if that is at least ``cache_threshold`` of it.

    Below that share, and whenever load is out of balance (most minus fewest unfinished requests exceeds
    ``balance_absolute`` and their ratio ``balance_relative``), the replica with the fewest unfinished requests,
    equal ones in turn. These are the rules and defaults of the SGLang router (documentation, "cache_aware"); Preble
    (arXiv:2407.00023, section 3) argues the trade. It looks at what replicas hold at that moment, as routers do
    that are told of KV events (NVIDIA Dynamo, llm-d), where SGLang's keeps a tree of what it has sent.
    """

    cache_threshold: float
    balance_absolute: int
    balance_relative: float

    def __post_init__(self) -> None:
        if not 0 <= self.cache_threshold <= 1:
            raise InputError("cache_threshold", self.cache_threshold, "must be a share, 0 to 1")
        if self.balance_absolute < 0:
            raise InputError("balance_absolute", self.balance_absolute, "must not be negative")
        if self.balance_relative < 1:
            raise InputError("balance_relative", self.balance_relative, "must be at least 1")

    def choose(self, view: RouteView) -> int:
        outstanding = view.outstanding
        most, fewest = max(outstanding), min(outstanding)
        if most - fewest > self.balance_absolute and most > self.balance_relative * fewest:
            return fewest_in_turn(view)
        cached = view.cached()
        longest = max(cached)
        if not longest or longest < self.cache_threshold * view.request.known:
            return fewest_in_turn(view)
        holders = [place for place, tokens in enumerate(cached) if tokens == longest]
        return min(holders, key=outstanding.__getitem__)
