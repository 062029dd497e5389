"""Random: any replica, all equally likely."""

from dataclasses import dataclass

from mist.policy import RouteView


@dataclass(frozen=True)
class Random:
    """Uniform and blind: Poisson arrivals split into independent Poisson arrivals at every replica."""

    def choose(self, view: RouteView) -> int:
        return int(view.chance() * len(view.outstanding))
