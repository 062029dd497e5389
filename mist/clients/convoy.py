"""Decode-only batches that follow each other through pipeline stages, with nothing else to do."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mist.clients.stages import Passage, Stages, done
from mist.decoding import Decoding
from mist.perf.base import StepShape

Flight = tuple[float, float]  # s, when a batch was sent in and when it has left the last stage


class Decoder(Protocol):
    """A lane, as far as it decodes."""

    decodes: Decoding

    @property
    def flight(self) -> Flight | None: ...
    @property
    def awake(self) -> bool: ...
    @property
    def takeover(self) -> object: ...
    @property
    def prefilling(self) -> object: ...
    @property
    def running(self) -> object: ...
    def caught_up(self, steps: int, flight: Flight) -> None: ...
    def stand_by(self) -> None: ...


class Batch(NamedTuple):
    """One more step of a lane, sent in when its last one was done."""

    lane: int
    flight: Flight
    passage: Passage
    busy: float  # s, of the stages, this batch included


class Pace(NamedTuple):
    """What a lane's batches take in one stage: ``hop`` to get there, ``first`` and ``slope`` times their number."""

    hop: float
    first: float
    slope: float


class Convoy:
    """What the lanes of a pipeline do until one of them can change: a member leaves, or memory runs out.

    Worked out in one go, batch by batch, from the linear step times of each stage: what the lanes would do one event
    at a time, but for rounding. It holds while nobody is in line and no lane computes a prompt. Whatever happens
    meanwhile cuts it: batches not sent in by that instant are taken back.
    """

    def __init__(self, lanes: Sequence[Decoder], stages: Stages, free: int, most: int) -> None:
        self.lanes, self.stages = [lane for lane in lanes if lane.decodes.count], stages
        self.batches: list[Batch] = []
        self.end = self._send(free, most)  # s, when a lane's next step is not like its last
        self._sent = [batch.flight[0] for batch in self.batches]

    def _paces(self, decodes: Decoding) -> tuple[list[Pace], int]:
        """Of one lane in each stage, and the steps for which they hold."""
        stretches = self.stages.stretches(decodes)
        hops = [hop[decodes.count] for hop in self.stages.hops]
        paces = [Pace(hop, stretch.first, stretch.slope) for hop, stretch in zip(hops, stretches, strict=True)]
        return paces, int(min(decodes.steps_to_leaver(), *(stretch.steps for stretch in stretches)))

    def _send(self, free: int, most: int) -> float:
        decodes = [lane.decodes for lane in self.lanes]
        done = [lane.flight[1] for lane in self.lanes if lane.flight is not None]
        paces, last = zip(*[self._paces(each) for each in decodes], strict=True)
        taken = [1] * len(decodes)  # steps, the one in flight included
        busy, share, before = self.stages.busy, 1 / len(self.stages.stages), self.stages.passages[-1]
        while True:
            now = min(done)
            lane = done.index(now)
            step = taken[lane]
            due = len(decodes[lane].due(step))
            if step >= last[lane] or due > free or len(self.batches) == most:
                return now
            free -= due
            taken[lane] += 1
            time, passage = now, Passage()
            for (hop, first, slope), (_, clear) in zip(paces[lane], before, strict=True):
                begin = max(time + hop, clear)
                time = begin + first + step * slope
                busy += (time - begin) * share
                passage.append((begin, time))
            before, done[lane] = passage, time
            self.batches.append(Batch(lane, (now, time), passage, busy))

    def busy(self, now: float) -> float:
        """The stages' ``busy_by_now``."""
        number = bisect_right(self._sent, now)
        if not number:
            return self.stages.busy_by_now
        sent = [batch.passage for batch in self.batches[max(number - len(self.stages.stages), 0) : number]]
        earlier = [*self.stages.passages][len(sent) :]
        return done(self.batches[number - 1].busy, [*earlier, *sent], now)

    def load(self, now: float) -> float:
        """The stages' ``load_by_now``."""
        sent = self.batches[: bisect_right(self._sent, now)]
        if not sent:
            return self.stages.load_by_now
        last = sent[-len(self.stages.stages) :]
        earlier = slice(len(last), None)
        passages = [*[*self.stages.passages][earlier], *(batch.passage for batch in last)]
        shapes = [*[*self.stages.shapes][earlier], *self._shapes(sent)]
        return self.stages.load + self._load(self._steps(sent)) - self.stages.unspent(passages, shapes, now)

    def _shapes(self, batches: Sequence[Batch]) -> list[StepShape]:
        """Of the last of these, one for every stage at most."""
        shapes, steps = list[StepShape](), self._steps(batches)
        for batch in reversed(batches[-len(self.stages.stages) :]):
            decodes = self.lanes[batch.lane].decodes
            shapes.append(StepShape(decodes.count, decodes.cached + decodes.count * steps[batch.lane]))
            steps[batch.lane] -= 1
        return shapes[::-1]

    def _steps(self, batches: Sequence[Batch]) -> list[int]:
        """Of each lane."""
        steps = [0] * len(self.lanes)
        for batch in batches:
            steps[batch.lane] += 1
        return steps

    def _load(self, steps: Sequence[int]) -> float:
        """Seconds at full utilisation of so many steps of each lane, after the one in flight."""
        total = 0.0
        for lane, number in zip(self.lanes, steps, strict=True):
            count, context = lane.decodes.count, lane.decodes.cached
            if number:
                total += sum(load.stretch(count, context + count, number) for load in self.stages.loads)
        return total / len(self.stages.stages)

    def ended(self, now: float) -> int:
        """Steps ended by now that the lanes do not know of yet."""
        return bisect_right(self._sent, now)  # each was sent in when one ended

    def settle(self, now: float) -> int:
        """Put the stages and every lane where they are now, each with a batch in flight; how many were sent in."""
        kept = self.batches[: bisect_left(self._sent, now)] if now < self.end else self.batches
        steps, flights = self._steps(kept), [lane.flight for lane in self.lanes]
        if kept:
            passages = [batch.passage for batch in kept]
            self.stages.passed(kept[-1].busy, self._load(steps), passages, self._shapes(kept))
        for batch in kept:
            flights[batch.lane] = batch.flight
        for lane, ended, flight in zip(self.lanes, steps, flights, strict=True):
            assert flight is not None
            lane.caught_up(ended, flight)
        return len(kept)


def holds(lanes: Sequence[Decoder], stages: Stages) -> bool:
    """Whether all that lanes have in flight are decode-only batches whose like may follow."""
    return all(_stands_still(lane) or _goes_on(lane, stages) for lane in lanes)


def _stands_still(lane: Decoder) -> bool:
    return not (lane.awake or lane.running or lane.takeover)


def _goes_on(lane: Decoder, stages: Stages) -> bool:
    if lane.flight is None or lane.prefilling or lane.takeover:
        return False
    return all(stretch.steps > 1 for stretch in stages.stretches(lane.decodes))
