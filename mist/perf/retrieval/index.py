"""What an index says of itself, wherever it runs."""

from typing import Protocol


class Searched(Protocol):
    """Any index."""

    @property
    def k(self) -> int:
        """Neighbours that a query returns."""

    @property
    def recall(self) -> float | None:
        """Share of the true neighbours among them, where it is known."""

    @property
    def memory_bytes(self) -> float:
        """Bytes of the index."""


class Around:
    """Something that an index runs in: what it finds and how large it is stays the same."""

    index: Searched

    @property
    def k(self) -> int:
        return self.index.k

    @property
    def recall(self) -> float | None:
        return self.index.recall

    @property
    def memory_bytes(self) -> float:
        return self.index.memory_bytes
