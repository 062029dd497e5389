"""Outages of replicas and of servers, one after the other."""

from collections.abc import Callable, Iterator

from mist.faults import Faults
from mist.fleet import Fleet
from mist.kernel import Kernel


class Outages:
    """Those of a fleet's members, as ``faults`` has them for ``place``.

    ``fail`` is called with who fails, and for how many seconds; not if the member has been released since.
    """

    def __init__(  # noqa: PLR0917
        self, kernel: Kernel, faults: Faults, seed: int, place: str, fleet: Fleet, fail: Callable[[int, float], None]
    ) -> None:
        self._kernel, self._faults, self._seed, self._place = kernel, faults, seed, place
        self._fleet, self._fail = fleet, fail
        self._drawn: dict[int, Iterator[tuple[float, float]]] = {}  # by member

    def expect(self, index: int) -> None:
        """The next outage of a member that is up."""
        if index not in self._drawn:
            self._drawn[index] = self._faults.outages(self._place, index, self._seed)
        outage = next(self._drawn[index], None)
        if outage is not None:
            up, down = outage
            self._kernel.after(up, self._strike, index, self._fleet.life(index), down)

    def _strike(self, index: int, life: int, down: float) -> None:
        if self._fleet.life(index) == life:
            self._fail(index, down)
