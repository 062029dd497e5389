"""KV caches on their way from prefill clients to decode clients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from mist.clients.llm import LLMClient
from mist.errors import InputError
from mist.kernel import Kernel
from mist.request import Request, Stage, Visit


@dataclass(frozen=True)
class HandoverSpec:
    """Who hands over to whom, and when.

    ``reach`` is *global* (any prefill replica to any decode replica) or *local*: replica i of either pool
    belongs to affinity group i modulo ``groups`` and hands over within it only (MIST, arXiv:2504.09775,
    section 3). ``layerwise`` sends the KV of a layer while the next ones are computed (Splitwise,
    arXiv:2311.18677, section 4.3) instead of all of it after prefill.
    """

    reach: Literal["global", "local"] = "global"
    groups: int = 1
    layerwise: bool = False

    def __post_init__(self) -> None:
        if self.reach == "local" and self.groups < 2:
            raise InputError("groups", self.groups, "local hand-over needs at least 2 groups")
        if self.reach == "global" and self.groups != 1:
            raise InputError("groups", self.groups, "has no effect: a global hand-over has one group")


GLOBAL = HandoverSpec()


class Wire(Protocol):
    """What carries caches from one replica to another: the Link of all pairs, or a pair's Way."""

    @property
    def name(self) -> str: ...
    @property
    def next_flow(self) -> int: ...
    def send(self, size: float, call: Callable[..., None], *args: Any) -> None: ...
    def cancel(self, flow: int) -> None: ...


class Move:
    """One request's cache on its way.

    ``claim`` stands in line for memory at the sink: the request itself after prefill, a stand-in before, since
    the request still holds blocks at its source.
    """

    __slots__ = ("claim", "flows", "granted", "held", "produced", "request", "sink", "source", "source_index",
                 "started", "unsent", "wire")  # fmt: skip

    def __init__(self, request: Request, source: LLMClient) -> None:
        self.request = self.claim = request
        self.source, self.source_index = source, request.replica
        self.sink: tuple[int, LLMClient] | None = None
        self.wire: Wire  # to the sink, once there is one
        self.held: Any = None  # at the source; None before the prompt is computed
        self.produced = 0.0  # bytes there to send
        self.unsent = 0.0  # bytes of those
        self.flows: set[int] = set()  # transfers on the wire
        self.granted = False  # the sink has room
        self.started = -1.0  # s, first transfer


class Handovers:
    """Claims memory at a decode client for every cache, sends it over a wire, and keeps it at its source until then.

    ``between`` gives the wire from a prefill replica to a decode replica, by index.

    Layer by layer, the claim is made when a prompt's first chunk starts. A chunk of b bytes in a model of L
    layers, computed in c seconds, is on the wire from its first layer on (after c / L), but for its last layer, b / L,
    which is sent when the step ends. Alone on a link of bandwidth B, what remains after a prefill of one step
    is therefore ``max(b / (L B), b / B - c (1 - 1 / L))`` seconds and a latency: at least one layer's transfer.
    """

    def __init__(
        self,
        kernel: Kernel,
        spec: HandoverSpec,
        between: Callable[[int, int], Wire],
        *,
        bytes_per_token: float,
        layers: int,
        state_bytes: float = 0.0,
        route: Callable[[Request, int | None, Callable[[], None]], tuple[int, LLMClient] | None],
        landed: Callable[[Request, int], None],
        fetched: Callable[[int], None],
        withdrawn: Callable[[int], None],
    ) -> None:
        self.kernel, self.spec, self.between = kernel, spec, between
        self.bytes_per_token, self.layers = bytes_per_token, layers
        self.state_bytes = state_bytes  # of linear attention: there when the prompt is
        self.route, self.landed, self.fetched, self.withdrawn = route, landed, fetched, withdrawn
        self.moves: dict[int, Move] = {}
        self._preemptions: dict[LLMClient, int] = {}  # seen of each prefill client

    def watch(self, client: LLMClient, time: float) -> None:
        """A prefill client begins a step: the caches of its chunks leave as they come into being."""
        if client.preemptions != self._preemptions.get(client, 0):
            self._preemptions[client] = client.preemptions
            self._withdraw(client)
        for request, tokens in client.granted.values():
            if request.left > 1:
                move = self.moves.get(request.id) or self._begin(request, client)
                end = (request.computed + tokens) * self.bytes_per_token
                last_layer = tokens * self.bytes_per_token / self.layers
                self.kernel.after(time / self.layers, self._produce, move, end - last_layer)

    def _withdraw(self, client: LLMClient) -> None:
        """Who was preempted claims anew when it is back: memory that waits for memory could wait for ever."""
        running = {request.id for request in client.running}
        for move in [m for m in self.moves.values() if m.source is client and m.held is None]:
            if move.request.id not in running:
                self._give_up(move)
                if move.sink is not None:
                    self.withdrawn(move.sink[0])

    def prefilled(self, client: LLMClient, request: Request) -> None:
        """The prompt is computed; the source keeps the blocks until the cache has left."""
        now, move = self.kernel.now, self.moves.get(request.id)
        if request.queued < now:  # recomputed after a failure: its first token came earlier
            request.visits.append(Visit(Stage.PREFILL, client.name, request.queued, request.started, now))
            request.queued = request.started = now
        if move is None:
            move = self._begin(request, client)
        move.held = client.kv.detach(request)
        self._produce(move, request.computed * self.bytes_per_token + self.state_bytes)
        self._land_if_there(move)

    def _begin(self, request: Request, client: LLMClient) -> Move:
        move = self.moves[request.id] = Move(request, client)
        self.kernel.route(self._claim, move)
        return move

    def _claim(self, move: Move) -> None:
        if self.moves.get(move.request.id) is not move:
            return
        group = move.source_index % self.spec.groups if self.spec.groups > 1 else None
        move.sink = self.route(move.request, group, partial(self._claim, move))
        if move.sink is not None:
            move.wire = self.between(move.source_index, move.sink[0])
            move.claim = move.request if move.held is not None else _stand_in(move.request)
            move.sink[1].expect(move.claim, partial(self._grant, move))

    def _grant(self, move: Move, claim: Request) -> None:
        if self.moves.get(move.request.id) is move and claim is move.claim:
            move.granted = True
            self._send(move)

    def _produce(self, move: Move, so_far: float) -> None:
        if self.moves.get(move.request.id) is move and so_far > move.produced:
            move.unsent += so_far - move.produced
            move.produced = so_far
            if move.granted:
                self._send(move)

    def _send(self, move: Move) -> None:
        if move.started < 0:
            move.started = self.kernel.now
        if move.unsent:
            size, move.unsent = move.unsent, 0.0
            flow = move.wire.next_flow
            move.flows.add(flow)
            move.wire.send(size, self._arrived, move, flow)

    def _arrived(self, move: Move, flow: int) -> None:
        if flow in move.flows:
            move.flows.remove(flow)
            self._land_if_there(move)

    def _land_if_there(self, move: Move) -> None:
        if move.held is None or not move.granted or move.flows or move.unsent or move.sink is None:
            return
        request, (index, sink), now = move.request, move.sink, self.kernel.now
        del self.moves[request.id]
        started = max(move.started, request.queued)
        request.visits.append(Visit(Stage.HANDOVER, move.wire.name, request.queued, started, now))
        request.queued, request.started = now, -1.0
        move.source.give_back(move.held)
        if move.claim is not request:
            request.blocks, request.table = move.claim.blocks, move.claim.table
        self.landed(request, index)
        sink.land(request)
        self.fetched(move.source_index)

    def source_failed(self, source: LLMClient) -> list[Move]:
        """Give up every move from a client that is no more."""
        gone = [move for move in self.moves.values() if move.source is source]
        for move in gone:
            self._give_up(move)
        return gone

    def _give_up(self, move: Move) -> None:
        del self.moves[move.request.id]
        self._cancel(move)
        if move.sink is not None:
            move.sink[1].forget(move.claim, move.granted)

    def sink_failed(self, sink: LLMClient) -> None:
        """Begin again, elsewhere, every move to a client that is no more: the caches are still at their sources."""
        for move in [m for m in self.moves.values() if m.sink is not None and m.sink[1] is sink]:
            self._cancel(move)
            move.granted, move.sink, move.unsent, move.started = False, None, move.produced, -1.0
            if move.claim is move.request:
                move.request.blocks, move.request.table = 0, []
            self.kernel.route(self._claim, move)

    def _cancel(self, move: Move) -> None:
        for flow in move.flows:
            move.wire.cancel(flow)
        move.flows.clear()


def _stand_in(request: Request) -> Request:
    """Claims the blocks of a prompt that is still being computed."""
    claim = Request(request.id, request.arrived, request.input, request.output, request.priority, request.content)
    claim.known, claim.left = request.known, request.left
    claim.computed = request.known
    return claim


def check_handover(spec: HandoverSpec, replicas: Mapping[str, int], fixed: bool) -> None:
    """InputError unless every affinity group has a prefill and a decode replica, always.

    ``replicas`` are those of each pool if there are two, ``fixed`` says that they neither come nor go.
    """
    if spec == GLOBAL:
        return
    if len(replicas) < 2:
        raise InputError("", spec.reach, "a single pool hands nothing over: the options have no effect")
    if spec.groups > min(replicas.values()):
        fewest = min(replicas, key=replicas.__getitem__)
        raise InputError("groups", spec.groups, f"{fewest} has {replicas[fewest]} replicas")
    if spec.groups > 1 and not fixed:
        raise InputError("reach", spec.reach, "groups need replicas that neither are autoscaled nor switch roles")
