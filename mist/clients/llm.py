"""An inference engine on its own devices: queues, a batching policy, a step model and a KV pool."""

from collections import deque
from collections.abc import Callable, Collection
from math import ceil, sqrt

from mist.decoding import Decoding
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.perf.base import StepModel, StepShape, Stretch
from mist.policy import Scheduler, Step
from mist.request import Request, Stage, Visit


class LLMClient:
    """Runs one step at a time. The policy decides; the client carries it out.

    A run of decode-only steps in which nothing can change (nobody leaves, memory lasts, the line stands
    still) is leapt over in one event; an arrival cuts the leap at the end of the step it falls into.
    ``prefilled`` is called when a prompt's first token is out and the request decodes elsewhere,
    ``finished`` after its last token.
    """

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
        self.waiting: deque[Request] = deque()
        self._prefilling: dict[int, Request] = {}
        self.landed: deque[Request] = deque()  # KV handed over, not yet decoding
        self.decodes = Decoding(kv.block_tokens)
        self._running: dict[int, Request] = {}  # in admission order
        self._shelved: deque[tuple[Request, Callable[[Request], None]]] = deque()  # hand-overs with no room yet
        self._fetching = 0  # hand-overs with room here, KV on its way
        self._awake = False
        self._leap: tuple[float, int, Stretch] | None = None  # start, steps, their times
        self._stamp = 0  # tells a landing that was cut short from the one that replaced it
        self.preempted = 0  # since the last step
        self.preemptions = self.steps = self.leaps = self.tokens = 0
        self.busy = 0.0  # s

    # what a scheduler sees

    @property
    def prefilling(self) -> Collection[Request]:
        return self._prefilling.values()

    @property
    def decoding(self) -> int:
        return self.decodes.count

    @property
    def room(self) -> int:
        return self.kv.free - self.decodes.blocks_due

    @property
    def free(self) -> int:
        return self.kv.free

    def shortfall(self, request: Request, tokens: int) -> int:
        return self.kv.shortfall(request, tokens)

    # what the cluster asks for

    def submit(self, request: Request) -> None:
        """Put a request at the end of the line."""
        blocked = bool(self.waiting)
        request.queued, request.started = self.kernel.now, -1.0
        self.waiting.append(request)
        if not blocked or self._leap is None:
            self._wake()

    def expect(self, request: Request, fetch: Callable[[Request], None]) -> None:
        """Take over a prefilled request: call ``fetch`` once its KV has room here."""
        request.queued, request.started = self.kernel.now, -1.0
        self._shelved.append((request, fetch))
        self._wake()

    def land(self, request: Request) -> None:
        """The KV of an expected request is here."""
        self.landed.append(request)
        self._wake()

    def free_blocks(self, blocks: int) -> None:
        """A request that left has been fetched: its blocks are free again."""
        self.kv.give_back(blocks)
        self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self.kernel.choose(self._launch)
        elif self._leap is not None:
            self._cut()

    # the step loop

    def _launch(self) -> None:
        self._take_over()
        self.preempted = 0
        while self.decodes.blocks_due > self.kv.free:
            self._preempt()
        step = self.scheduler.next_step(self)
        while not step.chunks and not self.decodes.count and self._prefilling:
            self._preempt()  # prompts that starve each other of memory: the youngest gives way
            step = self.scheduler.next_step(self)
        if step.chunks:
            self._run(step)
        elif self.decodes.count:
            self._run_decodes()
        else:
            self._awake = False

    def _preempt(self) -> None:
        """The youngest loses its cache and goes back to the head of the line: it has the least to redo."""
        request = self._running.popitem()[1]
        if request.joined >= 0:
            self.decodes.leave(request)
        else:
            del self._prefilling[request.id]
        self.kv.release(request)
        request.computed = 0
        request.preemptions += 1
        self.waiting.appendleft(request)
        self.preempted += 1
        self.preemptions += 1

    def _take_over(self) -> None:
        """Reserve memory for hand-overs, first come, first served, and start on those that have arrived."""
        while self.landed:
            request = self.landed.popleft()
            self._fetching -= 1
            self._running[request.id] = request
            request.started = self.kernel.now
            self.decodes.join(request)
        while self._shelved and len(self._running) + self._fetching < self.scheduler.max_running:
            request, fetch = self._shelved[0]
            blocks = -(-request.computed // self.kv.block_tokens)
            if blocks + self.decodes.count > self.kv.free:
                break
            self._shelved.popleft()
            self._fetching += 1
            request.blocks = blocks
            self.kv.take(blocks)
            fetch(request)

    def _run(self, step: Step) -> None:
        """A step with prompt chunks in it."""
        decodes, kv = self.decodes, self.kv
        shape: list[tuple[int, int]] = []
        now = self.kernel.now
        for request, tokens in step.chunks:
            if request.id not in self._running:
                self.waiting.popleft()
                self._running[request.id] = self._prefilling[request.id] = request
                if request.started < 0:
                    request.started = now
            kv.grow(request, tokens)
            shape.append((tokens, request.computed))
            self.tokens += tokens
        members = context = 0
        if step.decode:
            members, context = decodes.count, decodes.cached
            kv.take(decodes.blocks_due)
        time = self.steptimes.step_time(StepShape(members, context, tuple(shape)))
        self.kernel.after(time, self._end_step, step, time)

    def _end_step(self, step: Step, time: float) -> None:
        self.busy += time
        self.steps += 1
        if step.decode:
            self._end_decodes(1)
        for request, tokens in step.chunks:
            request.computed += tokens
            if request.computed == request.known:
                del self._prefilling[request.id]
                self._sample(request)
        self.kernel.choose(self._launch)

    def _sample(self, request: Request) -> None:
        """The token that a completed prompt (or a recomputed one) yields."""
        now = self.kernel.now
        if request.first_token < 0:
            request.first_token = now
            request.visits.append(Visit(Stage.PREFILL, self.name, request.queued, request.started, now))
            request.queued = request.started = now
        request.known += 1
        request.left -= 1
        self.tokens += 1
        if not request.left:
            self._finish(request)
        elif self.prefilled is not None:
            del self._running[request.id]
            self.prefilled(request)
        else:
            self.decodes.join(request)

    def _finish(self, request: Request) -> None:
        now = request.finished = self.kernel.now
        if request.output > 1:
            request.visits.append(Visit(Stage.DECODE, self.name, request.queued, request.started, now))
        del self._running[request.id]
        self.kv.release(request)
        self.finished(request)

    def _end_decodes(self, steps: int) -> None:
        self.tokens += steps * self.decodes.count
        for request in self.decodes.advance(steps):
            self._finish(request)

    # leaps

    def _run_decodes(self) -> None:
        decodes = self.decodes
        stretch = self.steptimes.decode_stretch(decodes.count, decodes.cached)
        steps = decodes.steps_within(self.kv.free, min(decodes.steps_to_leaver(), stretch.steps))  # type: ignore[arg-type]
        self.kv.take(decodes.blocks_for(steps))
        self._stamp += 1
        self._leap = self.kernel.now, steps, stretch
        self.leaps += 1
        self.kernel.after(stretch.time(steps), self._end_leap, self._stamp)

    def _cut(self) -> None:
        """End the leap with the step in progress."""
        assert self._leap is not None
        start, steps, stretch = self._leap
        kept = steps_over(stretch, self.kernel.now - start, steps)
        if kept < steps:
            self.kv.give_back(self.decodes.blocks_for(steps) - self.decodes.blocks_for(kept))
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
        self._end_decodes(steps)
        self.kernel.choose(self._launch)


def steps_over(stretch: Stretch, elapsed: float, most: int) -> int:
    """The fewest steps, at least 1, whose end is not before ``elapsed`` seconds."""
    first, slope = stretch.first, stretch.slope
    if slope > 0:
        half = first - slope / 2
        guess = (sqrt(half * half + 2 * slope * elapsed) - half) / slope
    else:
        guess = elapsed / first
    steps = min(max(ceil(guess), 1), most)
    while steps > 1 and stretch.time(steps - 1) >= elapsed:
        steps -= 1
    while steps < most and stretch.time(steps) < elapsed:
        steps += 1
    return steps
