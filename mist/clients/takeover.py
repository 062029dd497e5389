"""Prefilled requests that an engine takes over from another, while it has not begun to decode them."""

from collections import deque
from collections.abc import Callable

from mist.memory.pool import BlockPool
from mist.request import Request

Fetch = Callable[[Request], None]


class Takeover:
    """Requests whose KV has no room here yet, is on its way, or is here, each first come, first served.

    Its length counts all of them.
    """

    __slots__ = ("expected", "fetching", "landed")

    def __init__(self) -> None:
        self.expected: deque[tuple[Request, Fetch]] = deque()  # no room yet
        self.fetching = 0  # with room reserved, those here but not decoding included
        self.landed: deque[Request] = deque()  # here, not yet decoding

    def __len__(self) -> int:
        return len(self.expected) + self.fetching

    @property
    def tokens(self) -> int:
        """Of those that wait for room."""
        return sum(request.known for request, _ in self.expected)

    def begin(self) -> Request:
        """The first of those that are here goes on decoding."""
        self.fetching -= 1
        return self.landed.popleft()

    def fetch(self, kv: BlockPool, seats: int, ahead: int) -> None:
        """Reserve memory for the expected and have them fetched, up to ``seats``; ``ahead`` blocks stay free."""
        while self.expected and self.fetching < seats:
            request, fetch = self.expected[0]
            if -(-request.computed // kv.block_tokens) + ahead > kv.free:
                break
            self.expected.popleft()
            self.fetching += 1
            kv.reserve(request)
            fetch(request)

    def drop(self, request: Request, kv: BlockPool) -> None:
        """One that is here will not be decoded."""
        self.landed.remove(request)
        self.forget(request, True, kv)

    def forget(self, request: Request, granted: bool, kv: BlockPool) -> None:
        """One will not come; if it was granted room, that is free again."""
        if granted:
            self.fetching -= 1
            kv.release(request)
        else:
            self.expected = deque(pair for pair in self.expected if pair[0] is not request)
