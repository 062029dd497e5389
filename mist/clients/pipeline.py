"""A replica cut into pipeline stages: as many batches in flight as stages, each request in one of them."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mist.clients.line import Line, RankedLine
from mist.clients.llm import LLMClient
from mist.kernel import Kernel
from mist.memory.pool import BlockPool
from mist.perf.base import StepModel, StepShape, Stretch
from mist.perf.power import Power
from mist.policy import Ranked, Scheduler
from mist.request import Request

EPOCH = 2**40  # steps: more than any lane takes


class Stages:
    """The stages of one replica, passed by batches in the order in which they were made.

    A batch enters a stage when it has left the one before and its activations are here, and the batch before it
    has left. To a lane it is a step model whose steps take from now until the last stage is done; who asks for a
    step's time sends the batch in.
    """

    def __init__(
        self, kernel: Kernel, stages: Sequence[StepModel], hops: Callable[[int, int], float], loads: Sequence[Power]
    ) -> None:
        self.kernel, self.stages, self.hops, self.loads = kernel, stages, hops, loads
        self.busy = self.load = 0.0  # s, mean over stages
        self._free = [0.0] * len(stages)  # when each has done all that was sent into it
        # by stage, from when to when it works on each of the batches in flight: no more than there are stages
        self._work: list[deque[tuple[float, float]]] = [deque(maxlen=len(stages)) for _ in stages]

    def step_time(self, shape: StepShape) -> float:
        """Seconds until a batch made now leaves the last stage; it is on its way."""
        spans = self._spans(shape)
        for number, (begin, end) in enumerate(spans):
            self._free[number] = end
            self._work[number].append((begin, end))
            self.busy += (end - begin) / len(spans)
        for load in self.loads:
            self.load += load.step(shape) / len(spans)
        return spans[-1][1] - self.kernel.now

    def predicted(self, shape: StepShape) -> float:
        """Seconds that a batch made now would take."""
        return self._spans(shape)[-1][1] - self.kernel.now

    def _spans(self, shape: StepShape) -> list[tuple[float, float]]:
        """From when to when each stage would work on a batch made now."""
        time, spans = self.kernel.now, list[tuple[float, float]]()
        for number, stage in enumerate(self.stages):
            if number:
                time += self.hops(shape.tokens, number - 1)
            begin = max(time, self._free[number])
            time = begin + stage.step_time(shape)
            spans.append((begin, time))
        return spans

    @property
    def busy_by_now(self) -> float:
        """``busy`` without what the batches in flight will still take."""
        now = self.kernel.now
        ahead = sum(end - max(begin, now) for work in self._work for begin, end in work if end > now)
        return self.busy - ahead / len(self.stages)

    def stop(self) -> None:
        """Nothing in flight goes on."""
        self.busy = self.busy_by_now
        for work in self._work:
            work.clear()

    def decode_stretch(self, decodes: int, context: int) -> Stretch:
        """One step: the next waits for what other lanes send in meanwhile."""
        return Stretch(1, self.step_time(StepShape(decodes, context)), 0.0)


class Lane(LLMClient):
    """One of the batches in flight, with the requests that are in no other."""

    pipeline: "PipelineClient"

    def step_time(self, chunks: tuple[tuple[int, int], ...]) -> float:
        return self.pipeline.stages.predicted(StepShape(self.decodes.count, self.decodes.cached, chunks))

    def _end_step(self, *arguments: Any) -> None:
        super()._end_step(*arguments)
        self.pipeline.stir()

    def _end_leap(self, stamp: int) -> None:
        super()._end_leap(stamp)
        self.pipeline.stir()


class PipelineClient:
    """An engine over pipeline stages: one line, one KV pool, and a lane for every stage.

    A lane makes its next batch as soon as its last one has left the last stage; whoever waits in line goes with
    the next lane that has room (vLLM's batch queue, one batch per stage). The seats are shared out
    evenly over the lanes (SGLang, --pp-max-micro-batch-size); the token budget is a batch's.
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
        request.queued, request.started = self.kernel.now, -1.0
        self.line.join(request)
        self.stir()

    def expect(self, request: Request, fetch: Callable[[Request], None]) -> None:
        """Take over a prefilled request, in the lane with the fewest."""
        lane = min(self.lanes, key=lambda lane: len(lane.running) + lane.promised)
        self._fetching[request.id] = lane
        lane.expect(request, fetch)

    def land(self, request: Request) -> None:
        """The KV of an expected request is here."""
        self._fetching.pop(request.id).land(request)

    def forget(self, request: Request, granted: bool) -> None:
        """An expected request will not come; if it was granted room, that is free again."""
        self._fetching.pop(request.id).forget(request, granted)
        self.stir()

    def give_back(self, held: Any) -> None:
        """A request that left has been fetched: what it held is free again."""
        self.kv.give_back(held)
        self.stir()

    def fail(self) -> None:
        """Stop for good; requests keep the tokens of the batches that have left the last stage."""
        self.failed = True
        self.stages.stop()
        for lane in self.lanes:
            lane.fail()

    def stir(self) -> None:
        """Let the lanes that stand still look for work, the emptiest first."""
        if self.failed:
            return
        for lane in sorted(self.lanes, key=lambda lane: len(lane.running)):
            if not lane.awake and (self.line.head is not None or lane.promised):
                lane.wake()

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
        """Seconds that a stage was at work, on average."""
        return self.stages.busy

    @property
    def busy_by_now(self) -> float:
        """The same, without what is still to come of the batches in flight."""
        return self.stages.busy_by_now

    @property
    def used_by_now(self) -> int:
        """KV blocks in use."""
        return self.kv.used

    @property
    def expected(self) -> int:
        """Hand-overs that wait for room here."""
        return sum(lane.expected for lane in self.lanes)

    @property
    def load(self) -> float:
        """Seconds at full utilisation, mean over devices."""
        return self.stages.load

    @property
    def steps(self) -> int:
        return sum(lane.steps for lane in self.lanes)

    @property
    def preemptions(self) -> int:
        return sum(lane.preemptions for lane in self.lanes)


def _shares(scheduler: Any, lanes: int) -> list[Scheduler]:
    """The scheduler for each lane, with its share of the seats, at least one."""
    seats = [max(1, (scheduler.max_running + lane) // lanes) for lane in range(lanes)]
    return [replace(scheduler, max_running=share) for share in seats]
