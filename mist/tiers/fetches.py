"""Caches on their way from tiers to the engines of a pool."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from mist.clients.llm import LLMClient
from mist.clients.loading import Loading
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.memory.staged import PassagePool, StagedPool, TieredPool
from mist.perf.base import StepModel, StepShape
from mist.request import Request, Stage, Visit
from mist.routing import predicted_ttft
from mist.tiers.found import DrawnSource, Found, Source, StoredSource
from mist.tiers.passages import PassageSource, PassageTiers
from mist.tiers.spec import DrawnTiers, StoredTiers
from mist.tiers.use import TiersUse, TierUse
from mist.tiers.wiring import Wiring


class Layout(NamedTuple):
    """What tiers have to know of a pool."""

    name: str
    replicas: int
    block_tokens: int
    bytes_per_token: float  # of KV
    layers: int
    port: float  # bytes per second, host links of one replica's devices together
    chunk: int  # most prompt tokens of a step
    stages: Sequence[StepModel]


class Choice:
    """The FetchView of one request."""

    def __init__(self, fetches: "Fetches", request: Request, replica: int, client: LLMClient, found: Found) -> None:
        self._fetches, self._request, self._replica, self._client = fetches, request, replica, client
        self._found = found

    @property
    def tokens(self) -> int:
        return (self._found.end - self._found.first) * self._fetches.layout.block_tokens

    def fetch_time(self) -> float:
        fetches = self._fetches
        sizes = ((tier, blocks * fetches.block_bytes) for tier, blocks in self._found.blocks.items())
        return max(fetches.wiring.expected(tier, self._replica, size) for tier, size in sizes)

    def recompute_time(self) -> float:
        layout, known = self._fetches.layout, self._request.known
        cached = self._found.first * layout.block_tokens
        whole = predicted_ttft(self._client, layout.stages, layout.chunk, known - cached, cached)
        return whole - self._rest_time(known - cached - self.tokens, cached + self.tokens)

    def _rest_time(self, tokens: int, cached: int) -> float:
        """Seconds for the prompt's last ``tokens`` in steps of their own."""
        layout, time = self._fetches.layout, 0.0
        while tokens:
            chunk = min(tokens, layout.chunk)
            shape = StepShape(self._client.decoding, self._client.context_by_now, ((chunk, cached),))
            time += sum(stage.step_time(shape) for stage in layout.stages)
            tokens, cached = tokens - chunk, cached + chunk
        return time


class Fetch:
    """One request's cache on its way to its engine."""

    __slots__ = ("began", "client", "found", "loading", "open", "request")

    def __init__(self, request: Request, client: LLMClient, found: Found, began: float) -> None:
        self.request, self.client, self.found, self.began = request, client, found, began
        self.open = len(found.blocks)  # transfers
        self.loading: Loading | None = None  # where it is computed on meanwhile


class Fetches:
    """Decides for every request that comes to an engine whether to fetch, and does it while the request waits.

    The decision is made on arrival at the replica, when it is known what its device holds, so that the transfer
    overlaps with the wait in line: who has landed takes the place of one who came when it did. Until it is admitted the
    cache lies in staging buffers and no KV blocks are taken for it.
    """

    def __init__(self, kernel: Kernel, spec: StoredTiers | DrawnTiers, layout: Layout, seed: int) -> None:
        self.kernel, self.spec, self.layout = kernel, spec, layout
        self.block_bytes = layout.block_tokens * layout.bytes_per_token
        self.wiring = Wiring(kernel, spec.tiers, layout.replicas, layout.port)
        self.source: Source
        if isinstance(spec, PassageTiers):
            sizes = self.block_bytes, layout.block_tokens, layout.layers
            self.source = PassageSource(kernel, spec, self.wiring, *sizes)
        elif isinstance(spec, StoredTiers):
            self.source = StoredSource(kernel, spec, self.wiring, self.block_bytes)
        else:
            self.source = DrawnSource(spec, layout.name, seed, layout.block_tokens)
        self.requests = self.found = self.fetched = self.recomputed_tokens = self._fetched_tokens = 0
        self._times: dict[str, list[float]] = {name: [] for name in spec.tiers}
        self._waits: dict[str, list[float]] = {name: [] for name in spec.tiers}
        self._blocks = dict.fromkeys(spec.tiers, 0)
        self._pools: list[TieredPool] = []

    def pool(self, total: int) -> BlockPool:
        """A KV pool of a replica that fetches."""
        kind: Callable[[int, int], TieredPool | StagedPool]
        kind = TieredPool if isinstance(self.source, StoredSource) else StagedPool
        kind = PassagePool if isinstance(self.source, PassageSource) else kind
        return kind(total, self.layout.block_tokens)

    def attach(self, client: LLMClient, replica: int) -> None:
        """A replica with a pool from here is new."""
        self.source.attach(client, replica)
        if isinstance(client.kv, TieredPool):
            self._pools.append(client.kv)

    def arrive(self, request: Request, replica: int, client: LLMClient) -> None:
        """A request is at its engine, now."""
        self.requests += 1
        found = self.source.find(request, replica, client)
        if found is not None:
            self.found += 1
            choice = Choice(self, request, replica, client, found)
            if self.spec.fetch.fetch(choice):
                self._begin(request, replica, client, found)
                return
            self.recomputed_tokens += choice.tokens
        client.submit(request)

    def _begin(self, request: Request, replica: int, client: LLMClient, found: Found) -> None:
        self.fetched += 1
        self._fetched_tokens += (found.end - found.first) * self.layout.block_tokens
        self.source.read(found, replica)
        fetch = Fetch(request, client, found, self.kernel.now)
        for tier, blocks in found.blocks.items():
            size = blocks * self.block_bytes
            self._blocks[tier] += blocks
            alone = self.wiring.alone(tier, replica, size)
            self.wiring.read(tier, replica, size, self._arrived, fetch, tier, alone)
        if self.spec.layerwise:
            fetch.loading = Loading(found.end * self.layout.block_tokens, self.layout.layers, self.kernel.now)
            client.loading[request.id] = fetch.loading
            self._stage(fetch)
            client.submit(request)

    def _stage(self, fetch: Fetch) -> None:
        kv = fetch.client.kv
        assert isinstance(kv, TieredPool | StagedPool)
        kv.staged[fetch.request.id] = fetch.found.first, fetch.found.end

    def _arrived(self, fetch: Fetch, tier: str, alone: float) -> None:
        now, request = self.kernel.now, fetch.request
        self._times[tier].append(now - fetch.began)
        wait = now - fetch.began - alone
        self._waits[tier].append(wait if wait > 1e-9 * alone else 0.0)  # else rounding
        fetch.open -= 1
        if fetch.open:
            return
        places = "+".join(fetch.found.blocks)
        request.visits.append(Visit(Stage.FETCH_KV, places, fetch.began, fetch.began, now))
        if fetch.loading is not None:
            fetch.loading.land(now)
        else:
            self._stage(fetch)
            fetch.client.resume(request)

    def use(self) -> TiersUse:
        """What has happened so far."""
        return TiersUse(
            tiers={name: self._use(name) for name in self.spec.tiers},
            requests=self.requests,
            found=self.found,
            fetched=self.fetched,
            fetched_tokens=self._fetched_tokens,
            recomputed_tokens=self.recomputed_tokens,
            wasted_tokens=sum(pool.wasted_tokens for pool in self._pools),
        )

    def _use(self, name: str) -> TierUse:
        times = self._times[name]
        read = TierUse(
            reads=len(times),
            hit_tokens=self._blocks[name] * self.layout.block_tokens,
            read_bytes=self._blocks[name] * self.block_bytes,
            written_bytes=0.0,
            transfer_time=fmean(times) if times else 0.0,
            transfer_time_p99=float(np.percentile(times, 99, method="inverted_cdf")) if times else 0.0,
            wait=fmean(self._waits[name]) if times else 0.0,
            peak=None,
        )
        return self.source.kept(name, read) if isinstance(self.source, StoredSource) else read
