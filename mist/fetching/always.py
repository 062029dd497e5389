"""Always fetch."""

from dataclasses import dataclass

from mist.policy import FetchView


@dataclass(frozen=True)
class Always:
    """Whatever is found is fetched."""

    def fetch(self, view: FetchView) -> bool:  # noqa: ARG002
        return True
