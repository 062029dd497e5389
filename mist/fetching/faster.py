"""Fetch what arrives before it would be computed."""

from dataclasses import dataclass

from mist.policy import FetchView


@dataclass(frozen=True)
class Faster:
    """Fetch if the bytes are here before the prompt would be computed without them.

    Both with the queues of this instant: transfers in flight on the tier and on its links, and the prompts before it
    at the engine. A fetch that ends while its request waits anyway costs it nothing.
    """

    def fetch(self, view: FetchView) -> bool:
        return view.fetch_time() < view.recompute_time()
