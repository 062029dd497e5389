"""The blocks that one store of a tier holds, and which of them goes when it is full."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from heapq import heappop, heappush
from math import inf
from typing import Literal

Eviction = Literal["lru", "lfu", "ttl"]


class Shelf:
    """Blocks by content, at most ``capacity`` of them, those being written included.

    *lru*: the least recently used goes; *lfu*: the least often used, of equals the least recently used; *ttl*: whatever
    was not used for ``ttl`` seconds has gone, and if it is full before that, the least recently used goes. Every block
    written is held, evicted, expired or lost with the store.
    """

    def __init__(self, capacity: float = inf, eviction: Eviction = "lru", ttl: float = inf) -> None:
        self.capacity, self.eviction, self.ttl = capacity, eviction, ttl
        self._held: OrderedDict[Hashable, tuple[int, int, float]] = OrderedDict()  # uses, tick and time of the last
        self._writing: set[Hashable] = set()
        self._heap: list[tuple[int, int, Hashable]] = []  # of lfu, with entries out of date
        self._tick = 0
        self.written = self.evicted = self.expired = self.lost = self.peak = 0  # blocks

    def __len__(self) -> int:
        return len(self._held) + len(self._writing)

    @property
    def held(self) -> int:
        """Blocks that can be read."""
        return len(self._held)

    def holds(self, key: Hashable, now: float) -> bool:
        """Whether a block can be read."""
        entry = self._held.get(key)
        return entry is not None and now - entry[2] < self.ttl

    def coming(self, key: Hashable) -> bool:
        """Whether a block is being written."""
        return key in self._writing

    def use(self, keys: Iterable[Hashable], now: float) -> None:
        """Blocks are read, the last one first, so that the tail of a prefix goes before its head."""
        for key in keys:
            uses = self._held.pop(key)[0]
            self._enter(key, uses + 1, now)

    def _enter(self, key: Hashable, uses: int, now: float) -> None:
        self._tick += 1
        self._held[key] = uses, self._tick, now
        if self.eviction == "lfu":
            heappush(self._heap, (uses, self._tick, key))

    def reserve(self, key: Hashable, now: float) -> tuple[bool, Hashable | None]:
        """Room for a block about to be written: whether there is any, and who had to go for it."""
        self.expire(now)
        gone = None
        if len(self) >= self.capacity:
            if not self._held:
                return False, None
            gone = self._victim()
            self.evicted += 1
        self._writing.add(key)
        self.peak = max(self.peak, len(self))
        return True, gone

    def arrive(self, keys: Iterable[Hashable], now: float) -> None:
        """Blocks have been written; as with use, the tail of a prefix first."""
        for key in keys:
            self._writing.remove(key)
            self.written += 1
            self._enter(key, 1, now)

    def abandon(self, keys: Iterable[Hashable]) -> None:
        """Blocks that were being written will not come."""
        self._writing.difference_update(keys)

    def lose(self) -> None:
        """The store is no more."""
        self.lost += len(self._held)
        self._held.clear()
        self._heap.clear()

    def expire(self, now: float) -> None:
        """Drop what has not been used for too long."""
        while self.ttl < inf and self._held:
            key, entry = next(iter(self._held.items()))
            if now - entry[2] < self.ttl:
                return
            del self._held[key]
            self.expired += 1

    def _victim(self) -> Hashable:
        if self.eviction != "lfu":
            return self._held.popitem(last=False)[0]
        while True:
            uses, tick, key = heappop(self._heap)
            if self._held.get(key, (0, 0, 0.0))[:2] == (uses, tick):
                del self._held[key]
                return key
