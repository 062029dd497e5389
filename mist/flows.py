"""Transfers over paths of several links that share every link max-min fairly."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

from mist.kernel import Kernel

Path = tuple[str, ...]  # names of links, each one direction


def max_min(capacities: Mapping[str, float], flows: Mapping[Path, int]) -> dict[Path, float]:
    """Bytes per second of each flow, where ``flows`` of them take each path.

    Progressive filling (Bertsekas and Gallager, "Data Networks", 2nd edition, section 6.5.2): all rates grow alike
    until a link is full; those who cross it keep what they have, the others grow on. So every flow crosses a full
    link on which nobody has more.
    """
    left = {link: capacities[link] for path in flows for link in path}
    open_ = dict.fromkeys(left, 0)  # flows that still grow, by link
    crossing: dict[str, list[Path]] = {link: [] for link in left}
    for path, count in flows.items():
        for link in path:
            open_[link] += count
            crossing[link].append(path)
    rates: dict[Path, float] = {}
    rate = 0.0
    while len(rates) < len(flows):
        full = min((link for link in left if open_[link]), key=lambda link: left[link] / open_[link])
        rate = max(left[full] / open_[full], rate)  # less only by rounding
        for path in crossing[full]:
            if path not in rates:
                rates[path] = rate
                for link in path:
                    left[link] -= rate * flows[path]
                    open_[link] -= flows[path]
    return rates


class Lane:
    """The flows of one path. They are served equally, so that one measure of progress does for all of them."""

    __slots__ = ("ends", "path", "progress", "rate", "serial", "since")

    def __init__(self, path: Path, now: float) -> None:
        self.path = path
        self.rate = 0.0  # bytes per second of each flow
        self.progress = 0.0  # bytes that a flow here since the start would have sent
        self.since = now  # s
        self.ends: list[tuple[float, int, float, Callable[..., None], tuple[Any, ...]]] = []  # (progress, flow, ...)
        self.serial = 0  # of changes

    def advance(self, now: float) -> None:
        self.progress += (now - self.since) * self.rate
        self.since = now


class Flows:
    """Transfers in flight over links of ``capacities`` bytes per second; a link may be crossed by any paths.

    Rates are worked out anew when a transfer begins or ends, for the flows that share a link with it, or with one that
    does, and so on; nobody else is touched. Cost is in paths and links of that part, not in transfers. A transfer's
    latency passes after its last byte has left and loads no link.
    """

    def __init__(self, kernel: Kernel, capacities: Mapping[str, float]) -> None:
        self.kernel, self.capacities = kernel, dict(capacities)
        self.bytes_sent = 0.0
        self._lanes: dict[Path, Lane] = {}  # with flows in them
        self._crossing: dict[str, dict[Path, None]] = {}  # paths in use, by link
        self._paths: dict[int, Path] = {}  # by flow
        self._flows = 0  # ever begun

    def lay(self, links: Mapping[str, float]) -> None:
        """Further links; those there are keep their bandwidth."""
        for link, bandwidth in links.items():
            self.capacities.setdefault(link, bandwidth)

    @property
    def next_flow(self) -> int:
        """The number of the transfer that is sent next."""
        return self._flows + 1

    @property
    def rates(self) -> dict[Path, tuple[int, float]]:
        """Flows in flight on each path, and bytes per second of each of them."""
        return {path: (len(lane.ends), lane.rate) for path, lane in self._lanes.items()}

    def ahead(self, link: str, size: float) -> float:
        """Bytes of others on a link until a transfer of ``size`` bytes begun now ends, were all served alike."""
        total, now = 0.0, self.kernel.now
        for path in self._crossing.get(link, ()):
            lane = self._lanes[path]
            done = lane.progress + (now - lane.since) * lane.rate
            total += sum(min(end[0] - done, size) for end in lane.ends)
        return total

    def send(self, path: Path, latency: float, size: float, call: Callable[..., None], *args: Any) -> None:
        """Call once ``size`` bytes have arrived, ``latency`` seconds after the last one was sent."""
        self._flows += 1
        self.bytes_sent += size
        lane = self._lanes.get(path)
        if lane is None:
            lane = self._lanes[path] = Lane(path, self.kernel.now)
            for link in path:
                self._crossing.setdefault(link, {})[path] = None
        lane.advance(self.kernel.now)
        heappush(lane.ends, (lane.progress + size, self._flows, latency, call, args))
        self._paths[self._flows] = path
        self._share([path], lane)

    def cancel(self, flow: int) -> None:
        """Stop a transfer, if its last byte is not sent yet; the call is not made."""
        path = self._paths.pop(flow, None)
        if path is None:
            return
        lane = self._lanes[path]
        lane.advance(self.kernel.now)
        (end,) = (end for end in lane.ends if end[1] == flow)
        lane.ends.remove(end)
        heapify(lane.ends)
        self.bytes_sent -= end[0] - lane.progress
        self._left(lane)

    def _left(self, lane: Lane) -> None:
        """A flow of this lane is gone."""
        if lane.ends:
            self._share([lane.path], lane)
            return
        lane.serial += 1
        del self._lanes[lane.path]
        for link in lane.path:
            del self._crossing[link][lane.path]
        self._share(self._neighbours(lane.path))

    def _share(self, paths: Iterable[Path], changed: Lane | None = None) -> None:
        """New rates for all whom a change on these paths may touch; the next end of ``changed`` has changed as well."""
        part = self._part(paths)
        rates = max_min(self.capacities, {path: len(self._lanes[path].ends) for path in part})
        for path, rate in rates.items():
            lane = self._lanes[path]
            if rate != lane.rate or lane is changed:
                lane.advance(self.kernel.now)
                lane.rate = rate
                self._plan(lane)

    def _part(self, paths: Iterable[Path]) -> Collection[Path]:
        """These paths, all that share a link with one of them, or with one that does, and so on."""
        seen = dict.fromkeys(paths)
        look = list(seen)
        while look:
            for path in self._neighbours(look.pop()):
                if path not in seen:
                    seen[path] = None
                    look.append(path)
        return seen

    def _neighbours(self, path: Path) -> dict[Path, None]:
        return dict.fromkeys(other for link in path for other in self._crossing[link])

    def _plan(self, lane: Lane) -> None:
        lane.serial += 1
        left = max(lane.ends[0][0] - lane.progress, 0.0)
        self.kernel.after(left / lane.rate, self._end, lane, lane.serial)

    def _end(self, lane: Lane, serial: int) -> None:
        if serial != lane.serial:
            return  # rates have changed meanwhile, and the end with them
        end, flow, latency, call, args = heappop(lane.ends)
        lane.progress, lane.since = end, self.kernel.now
        del self._paths[flow]
        self.kernel.after(latency, call, *args)
        self._left(lane)


@dataclass(frozen=True)
class Way:
    """A path between two places: what a Link is to its only pair."""

    flows: Flows
    path: Path
    latency: float  # s
    name: str

    @property
    def next_flow(self) -> int:
        """The number of the transfer that is sent next."""
        return self.flows.next_flow

    def send(self, size: float, call: Callable[..., None], *args: Any) -> None:
        """Call once ``size`` bytes have arrived."""
        self.flows.send(self.path, self.latency, size, call, *args)

    def cancel(self, flow: int) -> None:
        """Stop a transfer, if its last byte is not sent yet; the call is not made."""
        self.flows.cancel(flow)
