"""Caches on their way from tiers to the engines of a pool."""

from collections.abc import Callable
from statistics import fmean

import numpy as np

from mist.clients.llm import LLMClient
from mist.clients.loading import Loading
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.memory.staged import PassagePool, StagedPool, TieredPool
from mist.request import Request, Stage, Visit
from mist.tiers.found import DrawnSource, Found, Source
from mist.tiers.passages import PassageSource, PassageTiers
from mist.tiers.prediction import Choice, Layout
from mist.tiers.spec import DrawnTiers, StoredTiers
from mist.tiers.stores import StoredSource
from mist.tiers.use import TiersUse, TierUse
from mist.tiers.wiring import Wiring
from mist.topology import Wires


class Fetch:
    """One request's cache on its way to its engine."""

    __slots__ = ("began", "client", "flows", "found", "loading", "open", "request")

    def __init__(self, request: Request, client: LLMClient, found: Found, began: float) -> None:
        self.request, self.client, self.found, self.began = request, client, found, began
        self.open = len(found.blocks)  # transfers
        self.flows: list[int] = []  # their numbers
        self.loading: Loading | None = None  # where it is computed on meanwhile

    @property
    def span(self) -> tuple[int, int]:
        return self.found.first, self.found.end

    def visit(self, now: float) -> None:
        """It ends here."""
        self.request.visits.append(Visit(Stage.FETCH_KV, self.found.places, self.began, self.began, now))


class Fetches:
    """Decides for every request that comes to an engine whether to fetch, and does it while the request waits.

    The decision is made on arrival at the replica, when it is known what its device holds, so that the transfer
    overlaps with the wait in line: who has landed takes the place of one who came when it did. What has landed takes
    KV blocks, where there are enough and nobody in line is without, and waits in host buffers for its admission else.
    """

    def __init__(
        self, kernel: Kernel, spec: StoredTiers | DrawnTiers, layout: Layout, seed: int, wires: Wires | None = None
    ) -> None:
        self.kernel, self.spec, self.layout = kernel, spec, layout
        self.wiring = Wiring(kernel, layout.name, spec.tiers, wires)
        self.source: Source
        if isinstance(spec, PassageTiers):
            self.source = PassageSource(
                kernel, spec, self.wiring, (layout.block_tokens, layout.block_bytes), layout.layers
            )
        elif isinstance(spec, StoredTiers):
            self.source = StoredSource(kernel, spec, self.wiring, (layout.block_tokens, layout.block_bytes))
        else:
            self.source = DrawnSource(spec, layout.name, seed, layout.block_tokens)
        self.requests = self.found = self.fetched = 0
        self.recomputed_tokens = self._fetched_tokens = self._lost_tokens = 0
        self._times: dict[str, list[float]] = {name: [] for name in spec.tiers}
        self._waits: dict[str, list[float]] = {name: [] for name in spec.tiers}
        self._blocks, self._states = dict.fromkeys(spec.tiers, 0), dict.fromkeys(spec.tiers, 0)
        self._pools: list[TieredPool | StagedPool] = []
        self._flying: dict[int, Fetch] = {}  # by request

    def pool(self, total: int) -> BlockPool:
        """A KV pool of a replica that fetches."""
        kind: Callable[[int, int], TieredPool | StagedPool]
        kind = TieredPool if isinstance(self.source, StoredSource) else StagedPool
        kind = PassagePool if isinstance(self.source, PassageSource) else kind
        return kind(total, self.layout.block_tokens)

    def attach(self, client: LLMClient, replica: int) -> None:
        """A replica with a pool from here is new."""
        place = self.layout.name, replica
        self.wiring.lay(place, self.layout.port)
        self.source.attach(client, place)
        self._pools.append(_pool(client))

    def waiting(self) -> int:
        """Requests that are in no line, since their caches are on the way."""
        return sum(fetch.loading is None for fetch in self._flying.values())

    def arrive(self, request: Request, replica: int, client: LLMClient) -> None:
        """A request is at its engine, now."""
        self.requests += 1
        place = self.layout.name, replica
        found = self.source.find(request, place, client)
        if found is not None:
            self.found += 1
            choice = Choice(self.layout, self.wiring, request, place, client, found)
            if self.spec.fetch.fetch(choice):
                self._begin(request, replica, client, found)
                return
            self.recomputed_tokens += choice.tokens
        client.submit(request)

    def _begin(self, request: Request, replica: int, client: LLMClient, found: Found) -> None:
        place = self.layout.name, replica
        self.fetched += 1
        self._fetched_tokens += found.length * self.layout.block_tokens
        self.source.read(found, place)
        fetch = self._flying[request.id] = Fetch(request, client, found, self.kernel.now)
        for tier, blocks in found.blocks.items():
            size = self.layout.size(blocks)
            self._blocks[tier] += blocks
            self._states[tier] += 1
            alone = self.wiring.alone(tier, place, size)
            fetch.flows.append(self.wiring.read(tier, place, size, self._arrived, fetch, tier, alone))
        if self.spec.layerwise:
            fetch.loading = Loading(found.end * self.layout.block_tokens, self.layout.layers, self.kernel.now)
            client.loading[request.id] = fetch.loading
            _pool(client).staged[request.id] = fetch.span
            client.submit(request)

    def _arrived(self, fetch: Fetch, tier: str, alone: float) -> None:
        now, request, client = self.kernel.now, fetch.request, fetch.client
        if self._flying.get(request.id) is not fetch:
            return
        self._times[tier].append(now - fetch.began)
        wait = now - fetch.began - alone
        self._waits[tier].append(wait if wait > 1e-9 * alone else 0.0)  # else rounding
        fetch.open -= 1
        if fetch.open:
            return
        del self._flying[request.id]
        fetch.visit(now)
        if fetch.loading is None:
            _pool(client).staged[request.id] = fetch.span
            self._hold(request, client, client.waiting)
            client.resume(request)
            return
        fetch.loading.land(now)
        if request.id in _pool(client).staged:
            self._hold(request, client, client.waiting - 1)
        elif request.aborted:
            client.loading.pop(request.id, None)

    def _hold(self, request: Request, client: LLMClient, others: int) -> None:
        """Blocks for what has landed, unless some of the ``others`` in line have none: they may be before it."""
        pool = _pool(client)
        if others == pool.holders:
            client.catch_up()
            pool.hold(request)
            client.wake()  # the steps to come have fewer blocks

    # replicas and requests that are no more

    def has(self, request: Request) -> bool:
        """Whether it is in no line, since its cache is on the way."""
        return request.id in self._flying and self._flying[request.id].loading is None

    def cancel(self, request: Request) -> bool:
        """Stop fetching for a request; whether it was in no line because of that."""
        fetch = self._flying.pop(request.id, None)
        if fetch is None:
            return False
        for flow in fetch.flows:
            self.wiring.cancel(flow)
        fetch.visit(self.kernel.now)
        if fetch.loading is not None:
            return False
        self._lost_tokens += fetch.found.length * self.layout.block_tokens
        request.queued = self.kernel.now
        return True

    def fail(self, replica: int, client: LLMClient) -> None:
        """A replica is no more; its requests' fetches have been cancelled."""
        self._lost_tokens += _pool(client).waiting_tokens
        self.source.fail((self.layout.name, replica))

    def use(self) -> TiersUse:
        """What has happened so far."""
        return TiersUse(
            tiers={name: self._use(name) for name in self.spec.tiers},
            requests=self.requests,
            found=self.found,
            fetched=self.fetched,
            fetched_tokens=self._fetched_tokens,
            recomputed_tokens=self.recomputed_tokens,
            wasted_tokens=sum(pool.wasted_tokens for pool in self._pools if isinstance(pool, TieredPool)),
            lost_tokens=self._lost_tokens + sum(pool.dropped_tokens for pool in self._pools),
        )

    def _use(self, name: str) -> TierUse:
        times = self._times[name]
        read = TierUse(
            reads=len(times),
            hit_tokens=self._blocks[name] * self.layout.block_tokens,
            read_bytes=self._blocks[name] * self.layout.block_bytes + self._states[name] * self.layout.state_bytes,
            written_bytes=0.0,
            transfer_time=fmean(times) if times else 0.0,
            transfer_time_p99=float(np.percentile(times, 99, method="inverted_cdf")) if times else 0.0,
            wait=fmean(self._waits[name]) if times else 0.0,
            peak=None,
        )
        return self.source.kept(name, read) if isinstance(self.source, StoredSource) else read


def _pool(client: LLMClient) -> TieredPool | StagedPool:
    kv = client.kv
    assert isinstance(kv, TieredPool | StagedPool)
    return kv
