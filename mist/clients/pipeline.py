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
from mist.perf.power import Load
from mist.policy import Ranked, Scheduler
from mist.request import Request

EPOCH = 2**40  # steps: more than any lane takes


class Stages:
    """The stages of one replica, passed by batches in the order in which they were made.

    A batch enters a stage when it has left the one before and its activations are here, and the batch before it
    has left. To a lane it is a step model whose steps take from now until the last stage is done, so a
    lane may ask once per step only.
    """

    def __init__(
        self, kernel: Kernel, stages: Sequence[StepModel], hops: Callable[[int, int], float], loads: Sequence[Load]
    ) -> None:
        self.kernel, self.stages, self.hops, self.loads = kernel, stages, hops, loads
        self.load = 0.0  # s, mean over stages
        self._sent = 0.0  # s of work, mean over stages, some of it still ahead
        self._ahead: list[deque[tuple[float, float]]] = [deque() for _ in stages]  # from when to when, by stage
        self._free = [0.0] * len(stages)  # when each has done all that was sent into it

    @property
    def busy(self) -> float:
        """Seconds that a stage has been at work, on average, up to now."""
        now, ahead = self.kernel.now, 0.0
        for batches in self._ahead:
            while batches and batches[0][1] <= now:
                batches.popleft()
            ahead += sum([end - max(start, now) for start, end in batches])
        return max(self._sent - ahead / len(self.stages), 0.0)  # sums that should cancel leave 1e-18

    def step_time(self, shape: StepShape) -> float:
        """Seconds until a batch made now leaves the last stage."""
        time = self.kernel.now
        for number, stage in enumerate(self.stages):
            if number:
                time += self.hops(shape.tokens, number - 1)
            takes, start = stage.step_time(shape), max(time, self._free[number])
            time = self._free[number] = start + takes
            self._sent += takes / len(self.stages)
            self._ahead[number].append((start, time))
        for load in self.loads:
            self.load += load.step(shape) / len(self.stages)
        return time - self.kernel.now

    def decode_stretch(self, decodes: int, context: int) -> Stretch:
        """One step: the next waits for what other lanes send in meanwhile."""
        return Stretch(1, self.step_time(StepShape(decodes, context)), 0.0)


class Lane(LLMClient):
    """One of the batches in flight, with the requests that are in no other."""

    pipeline: "PipelineClient"

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

    def give_back(self, blocks: int) -> None:
        """A request that left has been fetched: its blocks are free again."""
        self.kv.give_back(blocks)
        self.stir()

    def stir(self) -> None:
        """Let the lanes that stand still look for work, the emptiest first."""
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
