"""Where a request's prompt goes on beyond its device: looked up in stores, or drawn."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

from mist.clients.llm import LLMClient
from mist.kernel import Kernel
from mist.memory.shelf import Shelf
from mist.memory.staged import TieredPool
from mist.request import Request
from mist.streams import stream
from mist.tiers.spec import DrawnTiers, StoredTiers
from mist.tiers.use import TierUse
from mist.tiers.wiring import Wiring

DRAWS = 65_536  # requests after which drawn hits repeat


class Found(NamedTuple):
    """Blocks ``first`` to ``end`` of a prompt lie in tiers, so many in each."""

    first: int
    end: int
    blocks: Mapping[str, int]
    keys: Mapping[str, Sequence[Hashable]]  # what they hold; nothing where hits are drawn


class Source(Protocol):
    """What says where prompts go on."""

    def find(self, request: Request, replica: int, client: LLMClient) -> Found | None:
        """None where no tier has the next block."""

    def read(self, found: Found, replica: int) -> None:
        """It is being fetched."""

    def attach(self, client: LLMClient, replica: int) -> None:
        """A replica is new."""


class DrawnSource:
    """Hits as a DrawnTiers draws them, by the number of the request, from a stream of their own."""

    def __init__(self, spec: DrawnTiers, name: str, seed: int, block_tokens: int) -> None:
        self.spec, self.block_tokens = spec, block_tokens
        self._chances = stream(seed, f"tiers/{name}").random((DRAWS, len(spec.tiers)))
        self._reusable = spec.reusable.draw(DRAWS, stream(seed, f"tiers/{name}/reusable"))

    def attach(self, client: LLMClient, replica: int) -> None:
        """Nothing is kept."""

    def read(self, found: Found, replica: int) -> None:
        """Nothing is kept."""

    def find(self, request: Request, replica: int, client: LLMClient) -> Found | None:  # noqa: ARG002
        place = request.id % DRAWS
        blocks = min(int(self._reusable[place]), request.known - 1) // self.block_tokens
        for (name, tier), chance in zip(self.spec.tiers.items(), self._chances[place], strict=True):
            if chance < tier.hit:
                return Found(0, blocks, {name: blocks}, {}) if blocks else None
        return None


class StoredSource:
    """The stores of a StoredTiers: blocks by content, written back and looked up.

    What is to be written at one instant is one transfer. A block can be read once it has been written.
    """

    def __init__(self, kernel: Kernel, spec: StoredTiers, wiring: Wiring, block_bytes: float) -> None:
        self.kernel, self.spec, self.wiring, self.block_bytes = kernel, spec, wiring, block_bytes
        self.shelves: dict[tuple[str, int], Shelf] = {}
        self.written_bytes = dict.fromkeys(spec.tiers, 0.0)
        self.turned_away = dict.fromkeys(spec.tiers, 0)  # blocks
        self._below = dict(pairwise(spec.tiers))
        self._leaving: defaultdict[int, list[Hashable]] = defaultdict(list)  # off the device, by replica
        self._first = next(iter(spec.tiers))

    def attach(self, client: LLMClient, replica: int) -> None:
        kv = client.kv
        assert isinstance(kv, TieredPool)
        if self.spec.tiers[self._first].write == "evicted":
            kv.evicted = partial(self._evicted, replica)
        if any(tier.write == "through" for tier in self.spec.tiers.values()):
            kv.kept = partial(self._kept, replica)

    def shelf(self, tier: str, replica: int) -> Shelf:
        """The store of a tier that a replica uses."""
        spec = self.spec.tiers[tier]
        place = tier, spec.store(replica)
        if place not in self.shelves:
            ttl = {} if spec.ttl is None else {"ttl": spec.ttl}
            self.shelves[place] = Shelf(spec.blocks(self.block_bytes), spec.eviction, **ttl)
        return self.shelves[place]

    def find(self, request: Request, replica: int, client: LLMClient) -> Found | None:
        client.catch_up()
        kv, now = client.kv, self.kernel.now
        assert isinstance(kv, TieredPool)
        first = kv.hit(request) // kv.block_tokens
        shelves = {name: self.shelf(name, replica) for name in self.spec.tiers}
        keys: defaultdict[str, list[Hashable]] = defaultdict(list)
        end = first
        for end in range(first, (request.known - 1) // kv.block_tokens + 1):
            key = kv.key(request, end)
            name = next((name for name, shelf in shelves.items() if shelf.holds(key, now)), None)
            if name is None or end == (request.known - 1) // kv.block_tokens:
                break
            keys[name].append(key)
        return Found(first, end, {name: len(own) for name, own in keys.items()}, keys) if keys else None

    def read(self, found: Found, replica: int) -> None:
        for name, keys in found.keys.items():
            self.shelf(name, replica).use(reversed(keys), self.kernel.now)

    # write-back

    def _evicted(self, replica: int, key: Hashable) -> None:
        if not self._leaving[replica]:
            self.kernel.decide(self._flush, replica)
        self._leaving[replica].append(key)

    def _flush(self, replica: int) -> None:
        keys, self._leaving[replica] = self._leaving[replica], []
        self._put(self._first, replica, keys)

    def _kept(self, replica: int, keys: Sequence[Hashable]) -> None:
        for name, tier in self.spec.tiers.items():
            if tier.write == "through":
                self._put(name, replica, keys[::-1])

    def _put(self, tier: str, replica: int, keys: Sequence[Hashable], above: str | None = None) -> None:
        """Write what the store does not have, from the device or from the store above."""
        shelf, now = self.shelf(tier, replica), self.kernel.now
        written: list[Hashable] = []
        gone: list[Hashable] = []
        for key in keys:
            if shelf.holds(key, now) or shelf.coming(key):
                continue
            room, victim = shelf.reserve(key, now)
            if room:
                written.append(key)
            else:
                self.turned_away[tier] += 1
            if victim is not None:
                gone.append(victim)
        if written:
            size = len(written) * self.block_bytes
            self.written_bytes[tier] += size
            if above is None:
                self.wiring.write(tier, replica, size, self._written, shelf, written)
            else:
                self.wiring.demote(above, tier, replica, size, self._written, shelf, written)
        below = self._below.get(tier)
        if gone and below is not None and self.spec.tiers[below].write == "evicted":
            self._put(below, replica, gone, tier)

    def kept(self, tier: str, read: TierUse) -> TierUse:
        """What a tier did, with what was written to it."""
        shelves = [shelf for (name, _), shelf in self.shelves.items() if name == tier]
        peak = max((shelf.peak / max(shelf.capacity, 1) for shelf in shelves), default=0.0)
        return replace(
            read,
            written_bytes=self.written_bytes[tier],
            peak=None if self.spec.tiers[tier].capacity is None else peak,
            evicted=sum(shelf.evicted for shelf in shelves),
            expired=sum(shelf.expired for shelf in shelves),
            turned_away=self.turned_away[tier],
        )

    def _written(self, shelf: Shelf, keys: Sequence[Hashable]) -> None:
        shelf.arrive(keys, self.kernel.now)
