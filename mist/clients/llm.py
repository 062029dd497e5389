"""An inference engine on its own devices: a line, a batching policy, a step model and a KV pool."""

from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from math import ceil, sqrt
from typing import Any

from mist.clients.line import Line, RankedLine
from mist.clients.loading import Loading
from mist.decoding import Decoding
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.perf.base import StepModel, StepShape, Stretch
from mist.perf.power import Power
from mist.policy import DECODES, Grant, Preempt, Ranked, Scheduler
from mist.request import Request, Stage, Visit


class LLMClient:
    """Runs one step at a time. The policy decides; the client carries it out.

    A run of decode-only steps in which nothing can change (nobody leaves, memory lasts, the line stands
    still) is leapt over in one event; an arrival cuts the leap at the end of the step it falls into.
    ``finished`` is called after a request's last token, ``prefilled``, on a client that decodes nothing,
    after its first. ``watch`` sees every step or leap as it begins, and preemptions that leave nothing to step.
    """

    # CPython 3.11 slows the attributes of an object that has more than thirty of them in a dict.
    __slots__ = (
        "_aborting", "_admissions", "_awake", "_decode", "_expected", "_extended", "_fetching", "_landed", "_leap",
        "_prefilling", "_running", "_stamp", "_step", "busy", "decodes", "failed", "finished", "granted", "kernel",
        "kv", "leaps", "line", "load", "loading", "name", "power", "preempted", "preemptions", "prefilled",
        "scheduler", "steps", "steptimes", "watch",
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
        self.finished, self.prefilled = finished, prefilled
        self.watch: Callable[[LLMClient, float], None] | None = None
        self.line = RankedLine(scheduler.place) if isinstance(scheduler, Ranked) else Line()
        self.decodes = Decoding(kv.block_tokens)
        self._running: dict[int, Request] = {}  # in admission order
        self._prefilling: dict[int, Request] = {}  # those with a prompt to compute, in admission order
        self._admissions = 0
        # the step being made
        self.granted: dict[int, Grant] = {}
        self._decode = False  # every member of the lockstep set gets a token, and has the block for it
        self.preempted = 0
        # hand-overs from prefill clients
        self._expected: deque[tuple[Request, Callable[[Request], None]]] = deque()  # no room yet
        self._fetching = 0  # room reserved, KV on its way
        self._landed: deque[Request] = deque()  # KV here, not yet decoding
        self._aborting: list[Request] = []  # to be let go before the next step
        self._awake = False
        self._leap: tuple[float, int, Stretch] | None = None  # start, steps, their times
        self._extended = 1  # steps of the leap that have their blocks
        self._stamp = 0  # tells a leap's end from one that was cut short
        self.preemptions = self.steps = self.leaps = 0
        self._step: tuple[float, float, float] | None = None  # that is not a leap: start, time, load
        self.busy = 0.0  # s, of steps that ended
        self.power: Power | None = None
        self.load = 0.0  # s at full utilisation, mean over devices; a step's from its beginning, a leap's from its end
        self.loading: dict[int, Loading] = {}  # caches that come in layer by layer, by request
        self.failed = False

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

    def pending(self, request: Request) -> int:
        return 1 if request.joined >= 0 else request.known - request.computed

    def hit(self, request: Request) -> int:
        return self.kv.hit(request)

    def cached(self, request: Request) -> int:
        return self.decodes.computed(request) if request.joined >= 0 else request.computed

    def step_time(self, chunks: tuple[tuple[int, int], ...]) -> float:
        return self.steptimes.step_time(StepShape(self.decodes.count, self.decodes.cached, chunks))

    def need(self, request: Request, tokens: int) -> int:
        if request.joined >= 0:
            return int(self.decodes.computed(request) % self.kv.block_tokens == 0)
        return self.kv.need(request, tokens)

    # what the cluster asks for

    def submit(self, request: Request) -> None:
        """Put a request in line."""
        head = self.line.head
        request.queued, request.started = self.kernel.now, -1.0
        self.line.join(request)
        if self._leap is None or self.line.head is not head:
            self._wake()

    def resume(self, request: Request) -> None:
        """Put a request in line whose cache has been fetched, before those who came after it."""
        head = self.line.head
        request.queued, request.started = self.kernel.now, -1.0
        self.line.slip_in(request)
        if self._leap is None or self.line.head is not head:
            self._wake()

    def expect(self, request: Request, fetch: Callable[[Request], None]) -> None:
        """Take over a prefilled request: call ``fetch`` once its KV has room here."""
        request.queued, request.started = self.kernel.now, -1.0
        self._expected.append((request, fetch))
        self._wake()

    def land(self, request: Request) -> None:
        """The KV of an expected request is here."""
        self._landed.append(request)
        self._wake()

    def has(self, request: Request) -> bool:
        """Whether it is in line here, running or just handed over."""
        return self._running.get(request.id) is request or request in self._landed or request in self.line

    def abort(self, request: Request) -> None:
        """Let go of a request that it has, once the step under way has ended, unless it ends with that.

        As vLLM V1 does (``EngineCore.abort_requests``): aborts are read between two steps. ``finished`` is called
        with it. What it computed can be found in the prefix cache by others.
        """
        self._aborting.append(request)
        self._wake()

    def give_back(self, held: Any) -> None:
        """A request that left has been fetched: what it held is free again."""
        self.kv.give_back(held)
        self._wake()

    @property
    def awake(self) -> bool:
        """Whether a step is under way or about to be made."""
        return self._awake

    @property
    def promised(self) -> int:
        """Hand-overs that are expected, on their way or just here."""
        return len(self._expected) + self._fetching + len(self._landed)

    def wake(self) -> None:
        """Look for work; a leap is cut short for it."""
        self._wake()

    @property
    def expected(self) -> int:
        """Hand-overs that wait for room here."""
        return len(self._expected)

    @property
    def expected_tokens(self) -> int:
        """Tokens of the hand-overs that wait for room here."""
        return sum(request.known for request, _ in self._expected)

    @property
    def context_by_now(self) -> int:
        """Cached tokens of the lockstep set; those of the steps ended so far in a leap."""
        if self._leap is None:
            return self.decodes.cached
        start, steps, stretch = self._leap
        done = steps_over(stretch, self.kernel.now - start, steps) - 1
        return self.decodes.cached + self.decodes.count * done

    @property
    def busy_by_now(self) -> float:
        """Seconds spent stepping, up to now."""
        return self.worked()[1]

    def worked(self) -> tuple[float, float]:
        """Seconds at full utilisation, and seconds spent stepping, up to now; a step asks for its load evenly."""
        if self._leap is not None:
            return self._leapt(self.kernel.now - self._leap[0])
        if self._step is None:
            return self.load, self.busy
        start, time, load = self._step
        spent = self.kernel.now - start
        ahead = max(1 - spent / time, 0.0) if time else 0.0  # nothing, of a step that waits for a cache
        return self.load - load * ahead, self.busy + spent

    def _leapt(self, elapsed: float) -> tuple[float, float]:
        """The same, in a leap."""
        assert self._leap is not None
        _, steps, stretch = self._leap
        if self.power is None or not elapsed:
            return self.load, self.busy + elapsed
        count, context, begun = self.decodes.count, self.decodes.cached, steps_over(stretch, elapsed, steps)
        ended = stretch.time(begun - 1)
        part = min(max((elapsed - ended) / (stretch.time(begun) - ended), 0.0), 1.0)
        before, after = (self.power.stretch(count, context, number) for number in (begun - 1, begun))
        return self.load + before + part * (after - before), self.busy + elapsed

    @property
    def used_by_now(self) -> int:
        """KV blocks in use; those of the steps begun so far in a leap."""
        if self._leap is None:
            return self.kv.used
        start, steps, stretch = self._leap
        begun = steps_over(stretch, self.kernel.now - start, steps)
        return self.kv.used + self.decodes.blocks_for(begun) - self.decodes.blocks_for(self._extended)

    def catch_up(self) -> None:
        """Give the steps begun so far in a leap their blocks, for somebody who looks at what the cache holds."""
        if self._leap is not None:
            start, steps, stretch = self._leap
            begun = steps_over(stretch, self.kernel.now - start, steps)
            if begun > self._extended:
                self.kv.extend(self.decodes, self._extended, begun - self._extended)
                self._extended = begun

    def forget(self, request: Request, granted: bool) -> None:
        """An expected request will not come; if it was granted room, that is free again."""
        if granted:
            self._fetching -= 1
            self.kv.release(request)
        else:
            self._expected = deque(pair for pair in self._expected if pair[0] is not request)
        self._wake()  # the next one expected may fit

    def fail(self) -> None:
        """Stop for good, in the middle of a step; requests keep the tokens of the steps that ended before."""
        if self._leap is not None:
            start, steps, stretch = self._leap
            done = min(steps_over(stretch, self.kernel.now - start, steps), steps - 1)
            while done and start + stretch.time(done) > self.kernel.now:
                done -= 1
            self.load, self.busy = self.worked()
            self.steps += done
            self.decodes.advance(done)
        elif self._step is not None:
            self.load, self.busy = self.worked()
        for request in self._running.values():
            if request.joined >= 0:
                self.decodes.leave(request)
        self.failed, self._leap, self._step = True, None, None

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self.kernel.decide(self._launch)
        elif self._leap is not None:
            self._cut()

    # the step loop

    def _launch(self) -> None:
        if self.failed:
            return
        if self._aborting:
            self._let_go()
        if self._landed or self._expected:
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
            self._awake = False

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

    def _let_go(self) -> None:
        """Of the aborted, those that are still here."""
        aborting, self._aborting = self._aborting, []
        for request in aborting:
            if self._running.get(request.id) is request:
                self._quit(request)
            elif request in self._landed:
                self._landed.remove(request)
                self._fetching -= 1
                self.kv.release(request)
            elif request in self.line:
                self.line.remove(request)
                self.kv.drop(request)
            else:
                continue
            self.finished(request)

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

    def _take_over(self) -> None:
        """Reserve memory for hand-overs, first come, first served, and start on those that have arrived."""
        while self._landed and len(self._running) < self.scheduler.max_running:  # the preempted may have come back
            request = self._landed.popleft()
            self._fetching -= 1
            self._admissions += 1
            request.admitted = self._admissions
            self._running[request.id] = request
            request.started = self.kernel.now
            self.decodes.join(request)
        while self._expected and len(self._running) + self._fetching < self.scheduler.max_running:
            request, fetch = self._expected[0]
            if -(-request.computed // self.kv.block_tokens) + self.decodes.count > self.kv.free:
                break
            self._expected.popleft()
            self._fetching += 1
            self.kv.reserve(request)
            fetch(request)

    def _run(self) -> None:
        """A step in which not every request just decodes."""
        decodes, chunks = self.decodes, list(self.granted.values())
        if not self._decode and any(request.joined >= 0 for request, _ in chunks):
            self._bench()
            self._decode = True
            chunks = [grant for grant in chunks if grant.request.joined < 0]
        shape = StepShape(
            decodes.count if self._decode else 0,
            decodes.cached if self._decode else 0,
            tuple([(tokens, request.computed) for request, tokens in chunks]),
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

    def _step_time(self, shape: StepShape) -> float:
        if self.power is not None:
            self.load += self.power.step(shape)
        return self.steptimes.step_time(shape)

    def _bench(self) -> None:
        """Decoding requests that get no token leave the lockstep set: they have one token to compute, like a prompt."""
        for request in self._running.values():
            if request.joined >= 0 and request.id not in self.granted:
                self.decodes.leave(request)
                self._prefilling[request.id] = request
        self._prefilling = dict(sorted(self._prefilling.items(), key=lambda item: item[1].admitted))

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

    # leaps

    def _run_decodes(self) -> None:
        decodes, stretch = self.decodes, self._stretch()
        if self.preempted:  # one step, behind what was swapped out
            stretch = Stretch(1, stretch.first + self.kv.delay(), 0.0)
        most = 1 if self.preempted else decodes.steps_to_leaver()  # the next step may admit who this one put back
        room = self.kv.quiet + decodes.blocks_due  # the first step has its blocks
        steps = decodes.steps_within(room, most if most < stretch.steps else int(stretch.steps))
        if steps > 1 and (head := self.line.head) is not None:
            steps = self.kv.steps_to_hit(head, self._running.values(), decodes, steps)
        self._stamp += 1
        self._leap = self.kernel.now, steps, stretch
        self._extended = 1
        self.leaps += 1
        time = stretch.time(steps)
        if self.watch is not None:
            self.watch(self, time)
        self._take(time, self._end_leap, self._stamp)

    def _stretch(self) -> Stretch:
        """The steps that the lockstep set can take on end."""
        return self.steptimes.decode_stretch(self.decodes.count, self.decodes.cached)

    def _cut(self) -> None:
        """End the leap with the step in progress."""
        assert self._leap is not None
        start, steps, stretch = self._leap
        kept = steps_over(stretch, self.kernel.now - start, steps)
        if kept < steps:
            self._stamp += 1
            self._leap = start, kept, stretch
            self.kernel.at(max(start + stretch.time(kept), self.kernel.now), self._end_leap, self._stamp)

    def _end_leap(self, stamp: int) -> None:
        if stamp != self._stamp or self._leap is None:
            return
        _, steps, stretch = self._leap
        self._leap = None
        self.busy += stretch.time(steps)
        self.steps += steps
        if self.power is not None:
            self.load += self.power.stretch(self.decodes.count, self.decodes.cached, steps)
        if steps > self._extended:
            self.kv.extend(self.decodes, self._extended, steps - self._extended)
        self._sample_decodes(steps)
        self.kernel.decide(self._launch)


def steps_over(stretch: Stretch, elapsed: float, most: int) -> int:
    """The fewest steps, at least 1, whose end is not before ``elapsed`` seconds."""
    first, slope = stretch.first, stretch.slope
    if slope > 0:
        half = first - slope / 2
        guess = (sqrt(half * half + 2 * slope * elapsed) - half) / slope
    else:
        guess = elapsed / first
    steps = ceil(guess)
    steps = 1 if steps < 1 else most if steps > most else steps
    while steps > 1 and stretch.time(steps - 1) >= elapsed:
        steps -= 1
    while steps < most and stretch.time(steps) < elapsed:
        steps += 1
    return steps
