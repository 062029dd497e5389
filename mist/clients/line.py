"""The line in front of an engine."""

from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

from mist.request import Request


class Line:
    """First come, first served; the preempted go back to the front."""

    __slots__ = ("_line", "tokens")

    def __init__(self) -> None:
        self._line: deque[Request] = deque()
        self.tokens = 0  # to be computed

    def __len__(self) -> int:
        return len(self._line)

    @property
    def head(self) -> Request | None:
        return self._line[0] if self._line else None

    def join(self, request: Request) -> None:
        self._line.append(request)
        self.tokens += request.known - request.computed

    def slip_in(self, request: Request) -> None:
        """Take the place in line of one who came when it was submitted."""
        place = len(self._line)
        while place and self._line[place - 1].id > request.id:
            place -= 1
        self._line.insert(place, request)
        self.tokens += request.known - request.computed

    def rejoin(self, request: Request) -> None:
        """Back in line after a preemption."""
        self._line.appendleft(request)
        self.tokens += request.known - request.computed

    def pop(self) -> Request:
        request = self._line.popleft()
        self.tokens -= request.known - request.computed
        return request

    def __contains__(self, request: Request) -> bool:
        return any(waiting is request for waiting in self._line)

    def remove(self, request: Request) -> None:
        """Out of the line, wherever it stands."""
        self._line.remove(request)
        self.tokens -= request.known - request.computed


class RankedLine(Line):
    """Smallest ``place`` first, newcomers and preempted alike; ties by arrival, then id."""

    __slots__ = ("_heap", "_place")

    def __init__(self, place: Callable[[Request], Any]) -> None:
        super().__init__()
        self._place = place
        self._heap: list[tuple[Any, float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def head(self) -> Request | None:
        return self._heap[0][3] if self._heap else None

    def join(self, request: Request) -> None:
        heappush(self._heap, (self._place(request), request.arrived, request.id, request))
        self.tokens += request.known - request.computed

    rejoin = slip_in = join

    def __contains__(self, request: Request) -> bool:
        return any(waiting is request for *_, waiting in self._heap)

    def remove(self, request: Request) -> None:
        self._heap = [place for place in self._heap if place[3] is not request]
        heapify(self._heap)
        self.tokens -= request.known - request.computed

    def pop(self) -> Request:
        request = heappop(self._heap)[3]
        self.tokens -= request.known - request.computed
        return request
