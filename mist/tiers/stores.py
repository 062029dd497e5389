"""The stores of tiers: blocks by content, written back and looked up."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, pairwise
from typing import NamedTuple

from mist.clients.llm import LLMClient
from mist.kernel import Kernel
from mist.memory.shelf import Shelf
from mist.memory.staged import TieredPool
from mist.request import Request
from mist.tiers.found import Found
from mist.tiers.spec import StoredTiers, reached_by_all
from mist.tiers.use import TierUse
from mist.tiers.wiring import Place, Wiring


class Write(NamedTuple):
    """Blocks on their way to a store."""

    tier: str
    shelf: Shelf
    keys: Sequence[Hashable]
    source: Place | None  # the replica whose devices or own store they come from; None where it is a shared store
    flow: int


class StoredSource:
    """The stores of a StoredTiers.

    What is to be written at one instant is one transfer. A block can be read once it has been written. A store that
    one replica has to itself goes with it, and so does what was on its way from there; the others stay.
    """

    def __init__(self, kernel: Kernel, spec: StoredTiers, wiring: Wiring, block: tuple[int, float]) -> None:
        """``block`` is the tokens and bytes of one."""
        self.kernel, self.spec, self.wiring = kernel, spec, wiring
        self.block_tokens, self.block_bytes = block
        self.shelves: dict[tuple[str, str], Shelf] = {}  # by tier and store
        self.gone: list[tuple[str, Shelf]] = []  # stores of replicas that are no more, by tier
        self.written_bytes = dict.fromkeys(spec.tiers, 0.0)
        self.turned_away = dict.fromkeys(spec.tiers, 0)  # blocks
        self._below = dict(pairwise(spec.tiers))
        self._leaving: defaultdict[Place, list[Hashable]] = defaultdict(list)  # off the device
        self._first = next(iter(spec.tiers))
        self._shared = shared_targets(spec, wiring)
        self._writes: dict[int, Write] = {}
        self._serial = count()

    def attach(self, client: LLMClient, place: Place) -> None:
        for tier in filter(self.wiring.private, self.spec.tiers):
            self._lose((tier, self.wiring.store(tier, place)))
        assert isinstance(client.kv, TieredPool)
        self.tell(client.kv, place)

    def tell(self, kv: TieredPool, place: Place) -> None:
        """A pool tells of what is to be written."""
        if self.spec.tiers[self._first].write == "evicted":
            kv.evicted = partial(self._evicted, place)
        if any(tier.write == "through" for tier in self.spec.tiers.values()):
            kv.kept = partial(self._kept, place)

    def shelf(self, tier: str, place: Place) -> Shelf:
        """The store of a tier that a replica uses."""
        address = tier, self.wiring.store(tier, place)
        if address not in self.shelves:
            spec = self.spec.tiers[tier]
            ttl = {} if spec.ttl is None else {"ttl": spec.ttl}
            self.shelves[address] = Shelf(spec.blocks(self.block_bytes), spec.eviction, **ttl)
        return self.shelves[address]

    def find(self, request: Request, place: Place, client: LLMClient) -> Found | None:
        client.catch_up()
        kv, now = client.kv, self.kernel.now
        assert isinstance(kv, TieredPool)
        first = kv.hit(request) // kv.block_tokens
        shelves = {name: self.shelf(name, place) for name in self.spec.tiers}
        keys: defaultdict[str, list[Hashable]] = defaultdict(list)
        end = first
        for end in range(first, (request.known - 1) // kv.block_tokens + 1):
            key = kv.key(request, end)
            name = next((name for name, shelf in shelves.items() if shelf.holds(key, now)), None)
            if name is None or end == (request.known - 1) // kv.block_tokens:
                break
            keys[name].append(key)
        return Found(first, end, {name: len(own) for name, own in keys.items()}, keys) if keys else None

    def read(self, found: Found, place: Place) -> None:
        for name, keys in found.keys.items():
            self.shelf(name, place).use(reversed(keys), self.kernel.now)

    # write-back

    def _evicted(self, place: Place, key: Hashable) -> None:
        if not self._leaving[place]:
            self.kernel.decide(self._flush, place)
        self._leaving[place].append(key)

    def _flush(self, place: Place) -> None:
        keys = self._leaving.pop(place, [])
        self._put(self._first, place, keys)

    def _kept(self, place: Place, keys: Sequence[Hashable]) -> None:
        for name, tier in self.spec.tiers.items():
            if tier.write == "through":
                self._put(name, place, keys[::-1])

    def decoded(self, request: Request, place: Place) -> None:
        """What a decode replica has computed of a request, whose memory it gives up, goes to the stores of all."""
        size, content = self.block_tokens, request.content
        if content is not None:
            keys = [content.key(block, size) for block in range(request.input // size, request.computed // size)]
            for name in self._shared:
                self._put(name, place, keys[::-1])

    def _put(self, tier: str, place: Place, keys: Sequence[Hashable], above: str | None = None) -> None:
        """Write what the store does not have, from the device or from the store above."""
        shelf, now = self.shelf(tier, place), self.kernel.now
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
            self._write(tier, shelf, place, written, above)
        below = self._below.get(tier)
        if gone and below is not None and self.spec.tiers[below].write == "evicted":
            self._put(below, place, gone, tier)

    def _write(self, tier: str, shelf: Shelf, place: Place, keys: Sequence[Hashable], above: str | None) -> None:
        size, serial = len(keys) * self.block_bytes, next(self._serial)
        self.written_bytes[tier] += size
        send: Callable[..., int] = self.wiring.write if above is None else partial(self.wiring.demote, above)
        flow = send(tier, place, size, self._written, serial)
        source = place if above is None or self.wiring.private(above) else None
        self._writes[serial] = Write(tier, shelf, keys, source, flow)

    def _written(self, serial: int) -> None:
        write = self._writes.pop(serial, None)
        if write is not None:
            write.shelf.arrive(write.keys, self.kernel.now)

    # replicas that are no more

    def fail(self, place: Place) -> None:
        self._leaving.pop(place, None)
        self._cancel([serial for serial, write in self._writes.items() if write.source == place])

    def _lose(self, address: tuple[str, str]) -> None:
        """A store goes, if it was there."""
        shelf = self.shelves.pop(address, None)
        if shelf is not None:
            self._cancel([serial for serial, write in self._writes.items() if write.shelf is shelf])
            shelf.lose()
            self.gone.append((address[0], shelf))

    def _cancel(self, serials: Sequence[int]) -> None:
        for serial in serials:
            write = self._writes.pop(serial)
            self.wiring.cancel(write.flow)
            write.shelf.abandon(write.keys)
            self.written_bytes[write.tier] -= len(write.keys) * self.block_bytes

    def every(self, tier: str) -> list[Shelf]:
        """All stores of a tier that there have been."""
        now = [shelf for (name, _), shelf in self.shelves.items() if name == tier]
        return now + [shelf for name, shelf in self.gone if name == tier]

    def kept(self, tier: str, read: TierUse) -> TierUse:
        """What a tier did, with what was written to it."""
        shelves = self.every(tier)
        peak = max((shelf.peak / max(shelf.capacity, 1) for shelf in shelves), default=0.0)
        return replace(
            read,
            written_bytes=self.written_bytes[tier],
            peak=None if self.spec.tiers[tier].capacity is None else peak,
            evicted=sum(shelf.evicted for shelf in shelves),
            expired=sum(shelf.expired for shelf in shelves),
            lost=sum(shelf.lost for shelf in shelves),
            turned_away=self.turned_away[tier],
        )


def shared_targets(spec: StoredTiers, wiring: Wiring) -> list[str]:
    """The tiers that decode replicas write to: of those that all reach, the first, and whoever is written through."""
    shared = [name for name, tier in spec.tiers.items() if reached_by_all(tier, wiring.network)]
    return [name for name in shared if name == shared[0] or spec.tiers[name].write == "through"]
