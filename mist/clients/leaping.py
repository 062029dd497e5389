"""An engine that leaps: a run of decode-only steps in which nothing can change is one event, in closed form."""

from math import ceil, sqrt
from typing import Any

from mist.clients.llm import LLMClient
from mist.kernel import Kernel
from mist.perf.base import Stretch
from mist.request import Request

Leap = tuple[float, int, Stretch]  # start, s; steps; their times


class LeapingClient(LLMClient):
    """An LLMClient that ends where one step at a time would have ended, in fewer events.

    Steps are leapt while nobody leaves, memory lasts and the line stands still; an arrival cuts the leap at the end
    of the step it falls into. Whoever looks at the client meanwhile sees the steps begun or ended so far.
    """

    __slots__ = ("_extended", "_leap", "_stamp", "leaps")

    def __init__(self, kernel: Kernel, name: str, **engine: Any) -> None:
        """``engine`` is what Seats take."""
        super().__init__(kernel, name, **engine)
        self._leap: Leap | None = None
        self._extended = 1  # steps of the leap that have their blocks
        self._stamp = 0  # tells a leap's end from one that was cut short
        self.leaps = 0

    # made and cut

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
        decodes = self.decodes
        if self._uneven:
            return self.steptimes.decode_stretch(decodes.count, decodes.cached, decodes.longest)
        return self.steptimes.decode_stretch(decodes.count, decodes.cached)

    def wake(self) -> None:
        """Look for work; a leap is cut short for it."""
        if self._leap is None:
            super().wake()
        else:
            self._cut()

    def _look_up(self, head: Request | None) -> None:
        if self._leap is None:
            super().wake()
        elif self.line.head is not head:  # a scheduler looks no further
            self._cut()

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

    def fail(self) -> None:
        if self._leap is not None:
            start, steps, stretch = self._leap
            done = min(self._begun(self._leap), steps - 1)
            while done and start + stretch.time(done) > self.kernel.now:
                done -= 1
            self.load, self.busy = self.worked()
            self.steps += done
            self.decodes.advance(done)
            self._leap = None
        super().fail()

    # seen from outside

    def _begun(self, leap: Leap) -> int:
        """Steps of a leap begun by now."""
        start, steps, stretch = leap
        return steps_over(stretch, self.kernel.now - start, steps)

    @property
    def context_by_now(self) -> int:
        """Cached tokens of the lockstep set, of the steps that ended."""
        done = 0 if self._leap is None else self._begun(self._leap) - 1
        return self.decodes.cached + self.decodes.count * done

    @property
    def used_by_now(self) -> int:
        """KV blocks in use, those of the step under way included."""
        if self._leap is None:
            return self.kv.used
        begun = self._begun(self._leap)
        return self.kv.used + self.decodes.blocks_for(begun) - self.decodes.blocks_for(self._extended)

    def catch_up(self) -> None:
        """Give the steps begun so far in a leap their blocks, for somebody who looks at what the cache holds."""
        if self._leap is not None and (begun := self._begun(self._leap)) > self._extended:
            self.kv.extend(self.decodes, self._extended, begun - self._extended)
            self._extended = begun

    def worked(self) -> tuple[float, float]:
        """Seconds at full utilisation, and seconds spent stepping, up to now; a step asks for its load evenly."""
        if self._leap is None:
            return super().worked()
        start, steps, stretch = self._leap
        elapsed = self.kernel.now - start
        if self.power is None or not elapsed:
            return self.load, self.busy + elapsed
        count, context, begun = self.decodes.count, self.decodes.cached, steps_over(stretch, elapsed, steps)
        ended = stretch.time(begun - 1)
        part = min(max((elapsed - ended) / (stretch.time(begun) - ended), 0.0), 1.0)
        before, after = (self.power.stretch(count, context, number) for number in (begun - 1, begun))
        return self.load + before + part * (after - before), self.busy + elapsed


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
