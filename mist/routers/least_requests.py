"""Least requests: the replica with the fewest unfinished requests, those that are equal in turn."""

from dataclasses import dataclass

from mist.policy import RouteView


@dataclass(frozen=True)
class LeastRequests:
    """Join the shortest queue; equal ones get requests round robin (NGINX, ngx_http_upstream_module, least_conn).

    Not to be confused with least loaded, which fills the first of equal replicas and leaves the last ones idle:
    the better for caches, the worse for what replicas wear out together.
    """

    def choose(self, view: RouteView) -> int:
        return fewest_in_turn(view)


def fewest_in_turn(view: RouteView) -> int:
    """The place with the fewest unfinished requests; the first at or after the turn's own among equals."""
    outstanding = view.outstanding
    fewest, n = min(outstanding), len(outstanding)
    place = view.turn % n
    while outstanding[place] != fewest:
        place = (place + 1) % n
    return place
