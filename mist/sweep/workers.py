"""Where designs are judged: on Ray, or in this process by the same code.

Both take jobs and give back outcomes, in the order they finish. Whatever a judge does, raise, hang, die or answer
with something that cannot be pickled, comes back as an outcome; only Ray itself failing is an exception here.
"""

from collections import deque
from typing import Protocol

from mist.sweep.judging import Job, Outcome, judged
from mist.sweep.on_ray import OnRay
from mist.sweep.question import Sweep


class Workers(Protocol):
    """Takes jobs, gives outcomes."""

    @property
    def slots(self) -> int:
        """How many jobs to keep in flight."""

    def submit(self, job: Job) -> None:
        """Queue a job."""

    def finished(self, patience_s: float) -> list[Outcome]:
        """Outcomes that are ready, waiting at most ``patience_s`` for the first; possibly none."""

    def close(self) -> None:
        """Cancel what is in flight and let everything go."""


class Serial:
    """Judges in this process, one at a time. Only the judge's own deadline ends a trial."""

    slots = 1

    def __init__(self, judge: str) -> None:
        self._judge = judge
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def finished(self, patience_s: float) -> list[Outcome]:  # noqa: ARG002
        if not self._queue:
            return []
        job = self._queue.popleft()
        answer = judged(self._judge, job.config, job.traffic, job.limit_s)
        return [Outcome(job.number, answer["record"], answer["error"], answer["wall_s"], 1)]

    def close(self) -> None:
        self._queue.clear()


def start(sweep: Sweep, judge: str) -> Workers:
    """The workers a sweep asks for; InputError where a named Ray cluster does not answer."""
    return Serial(judge) if sweep.workers == "serial" else OnRay(sweep.ray, judge)
