"""A cache that arrives while the engine already computes on it."""

from collections.abc import Callable


class Loading:
    """``tokens`` of a prompt whose KV of ``layers`` layers has been on its way since ``began``, seconds.

    Bytes arrive evenly, layer after layer, up to ``landed``.
    """

    __slots__ = ("began", "landed", "layers", "then", "tokens")

    def __init__(self, tokens: int, layers: int, began: float) -> None:
        self.tokens, self.layers, self.began = tokens, layers, began
        self.landed = -1.0  # s; -1 while it is on its way
        self.then: Callable[[], None] | None = None  # who waits for that

    def land(self, now: float) -> None:
        """All of it is here."""
        self.landed = now
        if self.then is not None:
            self.then()

    def computed(self, start: float, time: float) -> float:
        """When a step of ``time`` seconds from ``start`` on is done, each layer computed when its cache is here.

        Layer l of L is here at f(l), which is linear, and what remains from it on takes (L - l + 1) / L of the time,
        which is too: the latest is that of the first layer or of the last.
        """
        first = self.began + (self.landed - self.began) / self.layers
        return max(start + time, first + time, self.landed + time / self.layers)
