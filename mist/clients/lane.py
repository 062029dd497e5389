"""One of the batches that are in flight in a pipeline, with its requests."""

from collections.abc import Sequence
from typing import Any, Protocol

from mist.clients.convoy import Flight
from mist.clients.leaping import LeapingClient
from mist.clients.stages import Stages
from mist.perf.base import Stretch
from mist.request import Request


class Lanes(Protocol):
    """The pipeline, as far as its lanes know it (``mist.clients.pipeline.PipelineClient``)."""

    @property
    def lanes(self) -> Sequence["Lane"]: ...
    @property
    def stages(self) -> Stages: ...
    def leap(self) -> None: ...
    def stir(self) -> None: ...


class Lane(LeapingClient):
    """One of the batches in flight, with the requests that are in no other."""

    pipeline: Lanes
    _flight: Flight = (0.0, 0.0)

    @property
    def flight(self) -> Flight | None:
        """From when to when a decode-only batch passes the stages, if one does."""
        return self._flight if self._leap is not None else None

    @property
    def pledged(self) -> int:
        return sum(self.pledge(request) for lane in self.pipeline.lanes for request in lane.running)  # of one memory

    def step_time(self, chunks: tuple[tuple[int, int], ...], last: Request) -> float:
        return self.pipeline.stages.predicted(self._shape(chunks, last))

    def _run_decodes(self) -> None:
        super()._run_decodes()
        assert self._leap is not None
        start, _, stretch = self._leap
        self._flight = start, start + stretch.first
        self.pipeline.leap()

    def stand_by(self) -> None:
        """Whatever is in flight ends when ``caught_up`` says."""
        self._stamp += 1

    def caught_up(self, steps: int, flight: Flight) -> None:
        """So many steps have ended since, and another is in flight."""
        if steps:
            self.kv.extend(self.decodes, 1, steps)
            self.decodes.advance(steps)
            self.steps += steps
        self._stamp += 1
        self._flight, self._leap = flight, (flight[0], 1, Stretch(1, flight[1] - flight[0], 0.0))
        self.kernel.at(max(flight[1], self.kernel.now), self._end_leap, self._stamp)

    def _end_step(self, *arguments: Any) -> None:
        super()._end_step(*arguments)
        self.pipeline.stir()

    def _end_leap(self, stamp: int) -> None:
        super()._end_leap(stamp)
        self.pipeline.stir()
