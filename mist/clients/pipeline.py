"""A replica cut into pipeline stages: as many batches in flight as stages, each request in one of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mist.clients.convoy import Convoy, holds
from mist.clients.lane import Lane
from mist.clients.line import Line, RankedLine
from mist.clients.stages import Stages
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.policy import Ranked, Scheduler
from mist.request import Request

EPOCH = 2**40  # steps: more than any lane takes
NEAR, FAR = 32, 4096  # batches worked out ahead: after a cut, at most


class PipelineClient:
    """An engine over pipeline stages: one line, one KV pool, and a lane for every stage.

    A lane makes its next batch as soon as its last one has left the last stage; whoever waits in line goes with
    the next lane that has room (vLLM's batch queue, one batch per stage). The seats are shared out
    evenly over the lanes (SGLang, --pp-max-micro-batch-size); the token budget is a batch's. What all lanes do
    until one of them can change is leapt over in one event (see Convoy).
    """

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        *,
        scheduler: Scheduler,
        stages: Stages,
        kv: BlockPool,
        finished: Callable[[Request], None],
    ) -> None:
        self.kernel, self.name, self.kv, self.stages = kernel, name, kv, stages
        self.line = RankedLine(scheduler.place) if isinstance(scheduler, Ranked) else Line()
        self.lanes = [
            Lane(kernel, name, scheduler=share, steptimes=stages, kv=kv, finished=finished)
            for share in _shares(scheduler, len(stages.stages))
        ]
        self._fetching: dict[int, Lane] = {}
        self.failed = False
        self._convoy: Convoy | None = None
        self._reach = NEAR
        for number, lane in enumerate(self.lanes):
            lane.line, lane.pipeline = self.line, self
            # a lockstep set knows who was evicted by step number: no two lanes may share one
            lane.decodes.step = number * EPOCH

    @property
    def prefilled(self) -> Callable[[Request], None] | None:
        return self.lanes[0].prefilled

    @prefilled.setter
    def prefilled(self, call: Callable[[Request], None] | None) -> None:
        for lane in self.lanes:
            lane.prefilled = call

    def submit(self, request: Request) -> None:
        """Put a request in line."""
        self._cut()
        request.queued, request.started = self.kernel.now, -1.0
        self.line.join(request)
        self.stir()

    def resume(self, request: Request) -> None:
        """Put a request in line whose cache has been fetched, before those who came after it."""
        self._cut()
        request.queued, request.started = self.kernel.now, -1.0
        self.line.slip_in(request)
        self.stir()

    def wake(self) -> None:
        """Look for work."""
        self._cut()
        self.stir()

    def expect(self, request: Request, fetch: Callable[[Request], None]) -> None:
        """Take over a prefilled request, in the lane with the fewest."""
        self._cut()
        lane = min(self.lanes, key=lambda lane: len(lane.running) + len(lane.takeover))
        self._fetching[request.id] = lane
        lane.expect(request, fetch)

    def land(self, request: Request) -> None:
        """The KV of an expected request is here."""
        self._cut()
        self._fetching.pop(request.id).land(request)

    def forget(self, request: Request, granted: bool) -> None:
        """An expected request will not come; if it was granted room, that is free again."""
        self._cut()
        self._fetching.pop(request.id).forget(request, granted)
        self.stir()

    def has(self, request: Request) -> bool:
        """Whether it is in line here, or in a lane."""
        return any(lane.has(request) for lane in self.lanes)  # they share the line

    def abort(self, request: Request) -> None:
        """Let go of a request that it has, at once in line, otherwise once its lane's batch has left the last stage."""
        self._cut()
        if request in self.line:
            self.line.remove(request)
            self.kv.drop(request)
            self.lanes[0].finished(request)
            self.stir()
        else:
            next(lane for lane in self.lanes if lane.has(request)).abort(request)

    def give_back(self, held: Any) -> None:
        """A request that left has been fetched: what it held is free again."""
        self._cut()
        self.kv.give_back(held)
        self.stir()

    def fail(self) -> None:
        """Stop for good; requests keep the tokens of the batches that have left the last stage."""
        self._cut()
        self.failed = True
        self.stages.stop()
        for lane in self.lanes:
            lane.fail()

    def stir(self) -> None:
        """Let the lanes that stand still look for work, the emptiest first."""
        if self.failed:
            return
        for lane in sorted(self.lanes, key=lambda lane: len(lane.running)):
            if not lane.awake and (self.line.head is not None or lane.takeover):
                lane.wake()

    def leap(self) -> None:
        """A decode-only batch was sent in: leap over those that follow, if all lanes do the like."""
        if (
            self._convoy is None
            and self.line.head is None
            and type(self.kv) is BlockPool
            and holds(self.lanes, self.stages)
        ):
            convoy = Convoy(self.lanes, self.stages, self.kv.free, self._reach)
            if convoy.batches:
                self._convoy = convoy
                for lane in convoy.lanes:
                    lane.stand_by()
                self.kernel.at(convoy.end, self._arrive, convoy)

    def _arrive(self, convoy: Convoy) -> None:
        if self._convoy is convoy:
            self._cut()
            self._reach = min(2 * self._reach, FAR)

    def catch_up(self) -> None:
        """Bring the lanes to where they are now, for somebody who looks at them."""
        self._cut()

    def _cut(self) -> None:
        """End a leap here."""
        if self._convoy is not None:
            convoy, self._convoy = self._convoy, None
            self._reach = max(2 * convoy.settle(self.kernel.now), NEAR)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self.line)

    @property
    def running(self) -> list[Request]:
        """Admitted requests, lane by lane."""
        return [request for lane in self.lanes for request in lane.running]

    @property
    def busy(self) -> float:
        """Seconds that a stage has been at work, on average, up to now."""
        return self.stages.busy_by_now if self._convoy is None else self._convoy.busy(self.kernel.now)

    @property
    def busy_by_now(self) -> float:
        """The same."""
        return self.busy

    @property
    def used_by_now(self) -> int:
        """KV blocks in use."""
        self._cut()
        return self.kv.used

    @property
    def expected(self) -> int:
        """Hand-overs that wait for room here."""
        return sum(lane.expected for lane in self.lanes)

    @property
    def load(self) -> float:
        """Seconds at full utilisation, mean over devices, up to now."""
        return self.stages.load_by_now if self._convoy is None else self._convoy.load(self.kernel.now)

    def worked(self) -> tuple[float, float]:
        """Seconds at full utilisation, and seconds that a stage has been at work, on average, up to now."""
        return self.load, self.busy

    @property
    def steps(self) -> int:
        ended = 0 if self._convoy is None else self._convoy.ended(self.kernel.now)
        return sum(lane.steps for lane in self.lanes) + ended

    @property
    def preemptions(self) -> int:
        return sum(lane.preemptions for lane in self.lanes)


def _shares(scheduler: Any, lanes: int) -> list[Scheduler]:
    """The scheduler for each lane, with its share of the seats, at least one."""
    seats = [max(1, (scheduler.max_running + lane) // lanes) for lane in range(lanes)]
    return [replace(scheduler, max_running=share) for share in seats]
