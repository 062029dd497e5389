"""Never fetch."""

from dataclasses import dataclass

from mist.policy import FetchView


@dataclass(frozen=True)
class Never:
    """Whatever is found is computed again: what tiers are worth is the difference to this."""

    def fetch(self, view: FetchView) -> bool:  # noqa: ARG002
        return False
