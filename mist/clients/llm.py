"""An inference engine on its own devices: seats, a batching policy, a step model and a KV pool, one step at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

from mist.clients.seats import Seats
from mist.clients.takeover import Fetch, Takeover
from mist.kernel import Kernel
from mist.perf.base import StepShape
from mist.perf.power import Power
from mist.policy import DECODES, Grant, Preempt
from mist.request import Request


class LLMClient(Seats):
    """Runs one step at a time. The policy decides; the client carries it out.

    ``watch`` sees every step or leap as it begins, and preemptions that leave nothing to step.
    """

    __slots__ = ("_aborting", "_step", "awake", "busy", "failed", "load", "power", "steps", "takeover", "watch")

    def __init__(self, kernel: Kernel, name: str, **engine: Any) -> None:
        """``engine`` is what Seats take."""
        super().__init__(kernel, name, **engine)
        self.watch: Callable[[LLMClient, float], None] | None = None
        self.awake = False  # a step is under way or about to be made
        self.failed = False
        self.takeover = Takeover()  # prefilled requests from other clients
        self._aborting: list[Request] = []  # to be let go before the next step
        self._step: tuple[float, float, float] | None = None  # start, time, load
        self.steps = 0
        self.busy = 0.0  # s, of steps that ended
        self.load = 0.0  # s at full utilisation, mean over devices; a step's from its beginning, a leap's from its end
        self.power: Power | None = None

    # what the cluster asks for

    def submit(self, request: Request) -> None:
        """Put a request in line."""
        head = self.line.head
        request.queued, request.started = self.kernel.now, -1.0
        self.line.join(request)
        self._look_up(head)

    def resume(self, request: Request) -> None:
        """Put a request in line whose cache has been fetched, before those who came after it."""
        head = self.line.head
        request.queued, request.started = self.kernel.now, -1.0
        self.line.slip_in(request)
        self._look_up(head)

    def _look_up(self, _head: Request | None) -> None:
        """Somebody new is in line, who has pushed ``_head`` back or not."""
        self.wake()

    def expect(self, request: Request, fetch: Fetch) -> None:
        """Take over a prefilled request: call ``fetch`` once its KV has room here."""
        request.queued, request.started = self.kernel.now, -1.0
        self.takeover.expected.append((request, fetch))
        self.wake()

    def land(self, request: Request) -> None:
        """The KV of an expected request is here."""
        self.takeover.landed.append(request)
        self.wake()

    def forget(self, request: Request, granted: bool) -> None:
        """An expected request will not come; if it was granted room, that is free again."""
        self.takeover.forget(request, granted, self.kv)
        self.wake()  # the next one expected may fit

    def has(self, request: Request) -> bool:
        """Whether it is in line here, running or just handed over."""
        return self._running.get(request.id) is request or request in self.takeover.landed or request in self.line

    def abort(self, request: Request) -> None:
        """Let go of a request that it has, once the step under way has ended, unless it ends with that.

        As vLLM V1 does (``EngineCore.abort_requests``): aborts are read between two steps. ``finished`` is called
        with it. What it computed can be found in the prefix cache by others.
        """
        self._aborting.append(request)
        self.wake()

    def give_back(self, held: Any) -> None:
        """A request that left has been fetched: what it held is free again."""
        self.kv.give_back(held)
        self.wake()

    def wake(self) -> None:
        """Look for work; in a step, that is done when it ends."""
        if not self.awake:
            self.awake = True
            self.kernel.decide(self._launch)

    def fail(self) -> None:
        """Stop for good, in the middle of a step; requests keep the tokens of the steps that ended before."""
        self.load, self.busy = self.worked()
        for request in self._running.values():
            if request.joined >= 0:
                self.decodes.leave(request)
        self.failed, self._step = True, None

    # what others look at, at any time

    @property
    def expected(self) -> int:
        """Hand-overs that wait for room here."""
        return len(self.takeover.expected)

    @property
    def context_by_now(self) -> int:
        """Cached tokens of the lockstep set, of the steps that ended."""
        return self.decodes.cached

    @property
    def used_by_now(self) -> int:
        """KV blocks in use, those of the step under way included."""
        return self.kv.used

    @property
    def busy_by_now(self) -> float:
        """Seconds spent stepping, up to now."""
        return self.worked()[1]

    def worked(self) -> tuple[float, float]:
        """Seconds at full utilisation, and seconds spent stepping, up to now; a step asks for its load evenly."""
        if self._step is None:
            return self.load, self.busy
        start, time, load = self._step
        spent = self.kernel.now - start
        ahead = max(1 - spent / time, 0.0) if time else 0.0  # nothing, of a step that waits for a cache
        return self.load - load * ahead, self.busy + spent

    def catch_up(self) -> None:
        """Bring what the cache holds to where it is now, for somebody who looks at it."""

    # before a step

    def _launch(self) -> None:
        if self.failed:
            return
        if self._aborting:
            self._let_go()
        if self.takeover.landed or self.takeover.expected:
            self._take_over()
        self.granted, self.preempted, self._decode = {}, 0, False
        for decision in self.scheduler.schedule(self):
            if decision is DECODES:
                self._decode = True
                self._extend()
            elif type(decision) is Grant:
                self._grant(decision)
            elif type(decision) is Preempt:
                self._preempt(decision.request)
        if self.granted:
            self._run()
        elif self._decode and self.decodes.count:
            self._run_decodes()
        elif self.preempted or (self.line.head is not None and self.kv.reclaim()):
            if self.watch is not None:
                self.watch(self, 0.0)
            self.kernel.decide(self._launch)  # they may come back at once
        else:
            self.awake = False

    def _let_go(self) -> None:
        """Of the aborted, those that are still here."""
        aborting, self._aborting = self._aborting, []
        for request in aborting:
            if self._running.get(request.id) is request:
                self._quit(request)
            elif request in self.takeover.landed:
                self.takeover.drop(request, self.kv)
            elif request in self.line:
                self.line.remove(request)
                self.kv.drop(request)
            else:
                continue
            self.finished(request)

    def _take_over(self) -> None:
        """Start on the hand-overs that have arrived, and reserve memory for others."""
        takeover, seats = self.takeover, self.scheduler.max_running
        while takeover.landed and len(self._running) < seats:  # the preempted may have come back
            self._decode_on(takeover.begin())
        takeover.fetch(self.kv, seats - len(self._running), self.decodes.count)

    # a step

    def _run(self) -> None:
        decodes, chunks = self.decodes, list(self.granted.values())
        if not self._decode and any(request.joined >= 0 for request, _ in chunks):
            self._bench()
            self._decode = True
            chunks = [grant for grant in chunks if grant.request.joined < 0]
        shape = StepShape(
            decodes.count if self._decode else 0,
            decodes.cached if self._decode else 0,
            tuple([(tokens, request.computed) for request, tokens in chunks]),
            0,
            decodes.longest if self._uneven and self._decode else 0,
        )
        before = self.load
        time = self._step_time(shape) + self.kv.delay()
        self._step = self.kernel.now, time, self.load - before
        if self.watch is not None:
            self.watch(self, time)
        if self.loading:
            self._take(time, self._await_layers, chunks, time, self.kernel.now)
        else:
            self._take(time, self._end_step, chunks, time)

    def _run_decodes(self) -> None:
        """A step in which every request just decodes."""
        self._run()

    def _step_time(self, shape: StepShape) -> float:
        if self.power is not None:
            self.load += self.power.step(shape)
        return self.steptimes.step_time(shape)

    def _take(self, time: float, ended: Callable[..., None], *arguments: Any) -> None:
        """Have the devices for so many seconds."""
        self.kernel.after(time, ended, *arguments)

    def _await_layers(self, chunks: list[Grant], time: float, start: float) -> None:
        """The end of a step of ``time`` seconds, if no layer in it has waited for its cache."""
        loading = [self.loading[request.id] for request, _ in chunks if request.id in self.loading]
        for cache in loading:
            if cache.landed < 0:
                cache.then = partial(self._await_layers, chunks, time, start)
                return
        end = max([self.kernel.now, *(cache.computed(start, time) for cache in loading)])
        for request, _ in chunks:
            self.loading.pop(request.id, None)
        self.kernel.at(end, self._end_step, chunks, end - start)

    def _end_step(self, chunks: list[Grant], time: float) -> None:
        if self.failed:
            return
        self._step = None
        self.busy += time
        self.steps += 1
        if self._decode:
            self._sample_decodes(1)
        for request, tokens in chunks:
            request.computed += tokens
            if request.computed == request.known:
                del self._prefilling[request.id]
                self._sample(request)
        self.kernel.decide(self._launch)
