"""The requests of one engine, in line and admitted, and the KV blocks they hold: what a policy sees and changes."""

from collections.abc import Callable, Collection

from mist.clients.line import Line, RankedLine
from mist.clients.loading import Loading
from mist.decoding import Decoding
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.perf.base import StepModel, StepShape
from mist.policy import Grant, Ranked, Scheduler
from mist.request import Request, Stage, Visit


class Seats:
    """Who waits in line, who has a seat, computing a prompt or decoding, and the memory they hold.

    It is what a scheduler looks at (see EngineView), and it carries out what a scheduler decides: admission,
    memory for granted tokens, preemption. It makes no step, but is told of the tokens that one samples.

    ``finished`` is called after a request's last token, ``prefilled``, on a client that decodes nothing,
    after its first.
    """

    # CPython 3.11 slows the attributes of an object that has more than thirty of them in a dict.
    __slots__ = (
        "_admissions", "_decode", "_prefilling", "_running", "_uneven", "decodes", "finished", "granted", "kernel",
        "kv", "line", "loading", "name", "preempted", "preemptions", "prefilled", "scheduler", "steptimes",
    )  # fmt: skip

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        *,
        scheduler: Scheduler,
        steptimes: StepModel,
        kv: BlockPool,
        finished: Callable[[Request], None],
        prefilled: Callable[[Request], None] | None = None,
    ) -> None:
        self.kernel, self.name = kernel, name
        self.scheduler, self.steptimes, self.kv = scheduler, steptimes, kv
        self._uneven = getattr(steptimes, "uneven", False)  # the longest sequence of a batch counts
        self.finished, self.prefilled = finished, prefilled
        self.line = RankedLine(scheduler.place) if isinstance(scheduler, Ranked) else Line()
        self.decodes = Decoding(kv.block_tokens)
        self._running: dict[int, Request] = {}  # in admission order
        self._prefilling: dict[int, Request] = {}  # those with a prompt to compute, in admission order
        self._admissions = self.preemptions = 0
        self.loading: dict[int, Loading] = {}  # caches that come in layer by layer, by request
        # of the step being made
        self.granted: dict[int, Grant] = {}
        self._decode = False  # every member of the lockstep set gets a token, and has the block for it
        self.preempted = 0

    # what a scheduler sees

    @property
    def now(self) -> float:
        return self.kernel.now

    @property
    def head(self) -> Request | None:
        return self.line.head

    @property
    def waiting(self) -> int:
        return len(self.line)

    @property
    def running(self) -> Collection[Request]:
        return self._running.values()

    @property
    def youngest(self) -> Request:
        return next(reversed(self._running.values()))

    @property
    def prefilling(self) -> Collection[Request]:
        return self._prefilling.values()

    @property
    def decoding(self) -> int:
        return self.decodes.count

    @property
    def due(self) -> int:
        return self.decodes.blocks_due

    @property
    def blocks(self) -> int:
        return self.kv.total

    @property
    def free(self) -> int:
        return self.kv.free

    @property
    def pledged(self) -> int:
        return sum(map(self.pledge, self._running.values()))

    def pledge(self, request: Request) -> int:
        tokens = request.known + (request.left - 1 if self.prefilled is None else 0)
        return -(-tokens // self.kv.block_tokens)

    def pending(self, request: Request) -> int:
        return 1 if request.joined >= 0 else request.known - request.computed

    def hit(self, request: Request) -> int:
        return self.kv.hit(request)

    def chunk(self, request: Request, tokens: int) -> int:
        return self.kv.chunk(request, tokens)

    def cached(self, request: Request) -> int:
        return self.decodes.computed(request) if request.joined >= 0 else request.computed

    def step_time(self, chunks: tuple[tuple[int, int], ...], last: Request) -> float:
        return self.steptimes.step_time(self._shape(chunks, last)) + self.kv.expected_delay(last)

    def _shape(self, chunks: tuple[tuple[int, int], ...], _last: Request) -> StepShape:
        """Of a step of every decoding request and these prompt chunks."""
        decodes = self.decodes
        longest = decodes.longest if self._uneven else 0
        return StepShape(decodes.count, decodes.cached, chunks, 0, longest)

    def need(self, request: Request, tokens: int) -> int:
        if request.joined >= 0:
            return int(self.decodes.computed(request) % self.kv.block_tokens == 0)
        return self.kv.need(request, tokens)

    # what it decides

    def _extend(self) -> None:
        """Blocks for the next token of every member of the lockstep set."""
        self.kv.extend(self.decodes, 0, 1)

    def _grant(self, grant: Grant) -> None:
        request, tokens = grant
        if request.id not in self._running:
            self._admit(self.line.pop())
        if request.joined >= 0:
            self.kv.grow_member(request, self.decodes.computed(request))
        else:
            self.kv.grow(request, tokens)
        self.granted[request.id] = grant

    def _admit(self, request: Request) -> None:
        self.kv.admit(request)
        self._admissions += 1
        request.admitted = self._admissions
        self._running[request.id] = self._prefilling[request.id] = request
        if request.started < 0:
            request.started = self.kernel.now
        if self.loading and request.id in self.loading and self.loading[request.id].tokens != request.computed:
            del self.loading[request.id]  # not needed any more, or of no use

    def _preempt(self, request: Request) -> None:
        del self._running[request.id]
        granted = self.granted.pop(request.id, None) is not None
        if request.joined >= 0:
            has_block = (granted or self._decode) and self.need(request, 0)
            self.decodes.leave(request)
            request.blocks += has_block
        else:
            del self._prefilling[request.id]
        self.loading.pop(request.id, None)
        self.kv.evict(request)
        request.preemptions += 1
        self.line.rejoin(request)
        self.preempted += 1
        self.preemptions += 1

    def _bench(self) -> None:
        """Decoding requests that get no token leave the lockstep set: they have one token to compute, like a prompt."""
        for request in self._running.values():
            if request.joined >= 0 and request.id not in self.granted:
                self.decodes.leave(request)
                self._prefilling[request.id] = request
        self._prefilling = dict(sorted(self._prefilling.items(), key=lambda item: item[1].admitted))

    # what nobody decides here

    def _decode_on(self, request: Request) -> None:
        """A prefilled request whose KV has come from another client."""
        self._admissions += 1
        request.admitted = self._admissions
        self._running[request.id] = request
        request.started = self.kernel.now
        self.decodes.join(request)

    def _quit(self, request: Request) -> None:
        """An admitted request leaves before its time."""
        stage = Stage.PREFILL if request.first_token < 0 else Stage.DECODE
        request.visits.append(Visit(stage, self.name, request.queued, request.started, self.kernel.now))
        del self._running[request.id]
        if request.joined >= 0:
            self.decodes.leave(request)
        else:
            del self._prefilling[request.id]
        self.kv.release(request)

    # what a step yields

    def _sample(self, request: Request) -> None:
        """The token that a completed prompt (or a recomputed one) yields."""
        now = self.kernel.now
        if request.first_token < 0:
            request.first_token = now
            request.visits.append(Visit(Stage.PREFILL, self.name, request.queued, request.started, now))
            request.queued = request.started = now
        request.known += 1
        request.left -= 1
        if not request.left:
            self._finish(request)
        elif self.prefilled is not None:
            del self._running[request.id]
            self.prefilled(request)
        else:
            self.decodes.join(request)

    def _sample_decodes(self, steps: int) -> None:
        for request in self.decodes.advance(steps):
            self._finish(request)

    def _finish(self, request: Request) -> None:
        now = request.finished = self.kernel.now
        if request.output > 1:
            request.visits.append(Visit(Stage.DECODE, self.name, request.queued, request.started, now))
        del self._running[request.id]
        self.kv.release(request)
        self.finished(request)
