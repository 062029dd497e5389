"""The way of a request through the pools of one model."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial

from mist.clients.colocated import SharedDevice, alone
from mist.clients.llm import LLMClient
from mist.crossing import Crossing
from mist.engines import engine
from mist.faults import NO_FAULTS, Faults, NoFaults
from mist.fleet import Fleet, Scaler
from mist.handover import GLOBAL, Handovers, HandoverSpec
from mist.kernel import Kernel
from mist.network import LinkSpec
from mist.outages import Outages
from mist.replicas import Pool
from mist.request import Request, Stage, Visit
from mist.roles import FIXED_ROLES, Roles, Switcher, SwitchRoles
from mist.scaling import Autoscale
from mist.tiers.fetches import Fetches
from mist.tiers.spec import DrawnTiers, StoredTiers
from mist.topology import Wires


class Service:
    """Moves requests through one model's pools: one for prefill and decode, or one for each and a link.

    ``ended`` is called with every request that is finished or lost; ``good`` tells an autoscaler whether a request
    kept its SLO (see ``judge``); ``seed`` is of the faults. ``device`` says what a replica shares with other pools',
    ``stands`` on whose devices a pool stands, and with whom it fails, if on another's.
    """

    def __init__(
        self,
        kernel: Kernel,
        entry: Pool,
        decode: Pool | None = None,
        link: LinkSpec | None = None,
        *,
        wires: Wires | None = None,
        ended: Callable[["Service", Request], None],
        handover: HandoverSpec = GLOBAL,
        faults: Faults = NO_FAULTS,
        roles: Roles = FIXED_ROLES,
        good: Callable[[Request], bool] = bool,
        seed: int = 0,
        device: Callable[[str, int], SharedDevice | None] = alone,
        stands: Mapping[str, str] | None = None,
    ) -> None:
        self.kernel, self._seed, self._device, self._stands = kernel, seed, device, stands or {}
        self.pools = (entry,) if decode is None else (entry, decode)
        self.faults, self.good, self.ended = faults, good, ended
        self._entry, self._decode = entry, decode
        self._front_end = entry.spec.engine.front_end
        self.handovers: Handovers | None = None
        if decode is not None:
            crossing = Crossing(kernel, entry, decode, link, wires)
            self.handovers = crossing.handovers(handover, self._to_decode, self._landed, self._withdrawn)
        tiers = entry.spec.tiers
        if isinstance(tiers, StoredTiers | DrawnTiers):
            layout = entry.spec.layout(entry.name, entry.stages, (decode or entry).spec.speculation)
            entry.fetches = Fetches(kernel, tiers, layout, seed, wires)
        self._stored = entry.fetches if isinstance(tiers, StoredTiers) and tiers.decoded else None  # what is decoded
        for pool in self.pools:
            for index in range(pool.spec.replicas):
                pool.clients.append(self._client(pool, index))
        self.scalers: list[Scaler] = []
        for pool in self.pools:
            self._elastic(pool, switching=isinstance(roles, SwitchRoles))
        if isinstance(roles, SwitchRoles) and decode is not None:
            assert entry.fleet is not None and decode.fleet is not None
            Switcher(kernel, roles, entry.fleet, decode.fleet, crossing.moved)

    def _client(self, pool: Pool, index: int) -> LLMClient:
        device, finished = self._device(pool.name, index), partial(self._finished, pool)
        client = engine(self.kernel, pool, index, device=device, seed=self._seed, finished=finished)
        if pool.fetches is not None:
            pool.fetches.attach(client, index)
        elif self._stored is not None:
            self._stored.wiring.lay((pool.name, index), pool.spec.port)
        if pool.spec.role == "prefill":
            assert self.handovers is not None
            client.prefilled = partial(self._hand_over, pool, client)
            if self.handovers.spec.layerwise:
                client.watch = self.handovers.watch
        return client

    def _elastic(self, pool: Pool, switching: bool) -> None:
        """A fleet for a pool whose replicas come and go."""
        scaling = pool.spec.autoscaler
        failing = not isinstance(self.faults, NoFaults)
        if not (isinstance(scaling, Autoscale) or failing or switching):
            return
        pool.fleet = Fleet(self.kernel, pool.clients, pool.outstanding, partial(self._client, pool))
        if pool.fetches is not None:
            pool.fleet.fetching = pool.fetches.waiting
        if isinstance(scaling, Autoscale):
            self.scalers.append(Scaler(self.kernel, scaling, pool.fleet))
        if failing:
            pool.members = defaultdict(dict)
            place = self._stands.get(pool.name, pool.name)
            outages = Outages(self.kernel, self.faults, self._seed, place, pool.fleet, partial(self._fail, pool))
            pool.fleet.on_up = outages.expect
            for index in pool.fleet.up:
                outages.expect(index)

    def refusal(self, request: Request) -> str:
        """Why it can never be served here; empty if it can."""
        for pool in self.pools:
            why = pool.refusal(request)
            if why:
                return why
        return ""

    def submit(self, request: Request) -> None:
        """A request that is not refused is here, now."""
        if self._front_end:
            self.kernel.after(self._front_end, self.kernel.route, self._enter, request)
        else:
            self.kernel.route(self._enter, request)

    def abort(self, request: Request) -> None:
        """Nobody waits for a request any more: ``ended`` is called with it when its engine has let go of it.

        One that is on its way to a decode replica lands there first.
        """
        request.aborted = True
        if self.handovers is not None and request.id in self.handovers.moves:
            return
        if self._entry.fetches is not None and self._entry.fetches.has(request):
            self._entry.fetches.cancel(request)
            self._finished(self._entry, request)
            return
        for pool in self.pools:
            if 0 <= request.replica < len(pool.clients) and pool.clients[request.replica].has(request):
                pool.clients[request.replica].abort(request)
                return

    def _landed(self, request: Request, index: int) -> None:
        assert self._decode is not None
        self._decode.join(request, index)
        if request.aborted:
            self.kernel.decide(self.abort, request)

    def _enter(self, request: Request) -> None:
        if request.aborted:
            self.ended(self, request)
            return
        index = self._entry.route(request)
        if index is None:
            assert self._entry.fleet is not None
            self._entry.fleet.held.append(partial(self._enter, request))
            return
        self._entry.join(request, index)
        if self._entry.fetches is None:
            self._entry.clients[index].submit(request)
        else:
            self._entry.fetches.arrive(request, index, self._entry.clients[index])

    def _finished(self, pool: Pool, request: Request) -> None:
        if self._stored is not None and pool is self._decode:
            self._stored.source.decoded(request, (pool.name, request.replica))
        pool.leave(request)
        self.ended(self, request)
        pool.settle(request.replica)

    def judge(self, request: Request) -> None:
        """One that ended, for autoscalers that go by the SLO."""
        for scaler in self.scalers:
            scaler.ended += 1
            scaler.good += not request.lost and self.good(request)

    # from prefill to decode

    def _hand_over(self, pool: Pool, source: LLMClient, request: Request) -> None:
        assert self.handovers is not None
        pool.leave(request)
        self.handovers.prefilled(source, request)

    def _to_decode(
        self, request: Request, group: int | None, again: Callable[[], None]
    ) -> tuple[int, LLMClient] | None:
        assert self._decode is not None
        index = self._decode.route(request, group)
        if index is None:
            assert self._decode.fleet is not None
            self._decode.fleet.held.append(again)
            return None
        return index, self._decode.clients[index]

    def _withdrawn(self, index: int) -> None:
        """A request bound for this decode replica will not come."""
        assert self._decode is not None
        self._decode.outstanding[index] -= 1
        self._decode.settle(index)

    # failures

    def _fail(self, pool: Pool, index: int, down: float) -> None:
        fleet, members = pool.fleet, pool.members
        assert fleet is not None and members is not None
        client = pool.clients[index]
        client.fail()
        gone = list(members.pop(index, {}).values())
        if self.handovers is not None and pool is self._decode:
            self.handovers.sink_failed(client)
        elif self.handovers is not None:
            for move in self.handovers.source_failed(client):
                if move.sink is not None:
                    self._withdrawn(move.sink[0])
                if move.held is not None:
                    gone.append(move.request)
        fetching = {request.id for request in gone if pool.fetches is not None and pool.fetches.cancel(request)}
        if pool.fetches is not None:
            pool.fetches.fail(index, client)
        elif self._stored is not None:
            self._stored.source.fail((pool.name, index))
        fleet.fail(index, down)
        for request in gone:
            if request.id not in fetching and not request.aborted:
                _visited(client, request)
            self._send_again(client, request)

    def _send_again(self, client: LLMClient, request: Request) -> None:
        """A request whose replica failed: its cache is gone."""
        if request.aborted:
            self.ended(self, request)
            return
        request.computed = request.blocks = 0
        request.table, request.replica = [], -1
        if request.retries >= self.faults.retries:
            request.lost, request.first_token = f"{client.name} failed", -1.0
            self.ended(self, request)
            return
        request.retries += 1
        if self.faults.requests == "restart":
            request.known, request.left, request.first_token = request.input, request.output, -1.0
        self.kernel.route(self._enter, request)


def _visited(client: LLMClient, request: Request) -> None:
    """A stage ends with its replica."""
    now = client.kernel.now
    stage = Stage.PREFILL if request.first_token < 0 else Stage.DECODE
    started = request.started if request.started >= 0 else now
    request.visits.append(Visit(stage, client.name, request.queued, started, now))
