"""Least tokens: the replica with the fewest outstanding tokens."""

from dataclasses import dataclass

from mist.policy import RouteView


@dataclass(frozen=True)
class LeastTokens:
    """Where the fewest tokens are still to compute or held in KV memory; then fewest requests, then lowest index.

    The sum of prefill and decode load that NVIDIA Dynamo's KV router balances (documentation, "Router Concepts",
    cost function), without its credit for cached prefixes.
    """

    def choose(self, view: RouteView) -> int:
        loads = list(zip(view.tokens(), view.outstanding, strict=True))
        return loads.index(min(loads))
