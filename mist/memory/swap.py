"""Preemption by swap: an evicted request's KV blocks wait in host memory instead of being computed again."""

from dataclasses import dataclass
from math import inf

from mist.memory.pool import BlockPool
from mist.request import Request


@dataclass(frozen=True)
class SwapUse:
    """Traffic between devices and host, all devices of all replicas together."""

    out_bytes: float
    in_bytes: float
    host_peak: float  # most host blocks ever used over those there are, fullest replica
    recomputed: int  # preemptions that found the host full


@dataclass(frozen=True)
class HostMemory:
    """Room for ``blocks`` swapped blocks, and the way there.

    A block is ``block_bytes`` bytes on each of ``devices`` devices, which have links of their own of
    ``bandwidth`` bytes per second each.
    """

    blocks: int
    block_bytes: float
    devices: int
    bandwidth: float

    def time(self, blocks: int) -> float:
        """Seconds to copy that many blocks, one way."""
        return blocks * self.block_bytes / self.bandwidth if self.bandwidth < inf else 0.0


class SwapPool(BlockPool):
    """Blocks of evicted requests go to the host while it has room, and come back at the next admission.

    As vLLM V0 did it (v0.6, ``core/scheduler.py``, ``worker/cache_engine.py``): the blocks to move in and out are
    copied on the stream of the model, before the step that follows, so a step waits for both, one after the
    other, and nothing overlaps. V0 gave up when the host was full; here the request is computed again.
    """

    __slots__ = ("_away", "_moved", "blocks_in", "blocks_out", "host", "host_peak", "host_used", "recomputed")

    def __init__(self, total: int, block_tokens: int, host: HostMemory) -> None:
        super().__init__(total, block_tokens)
        self.host = host
        self._away: dict[int, int] = {}  # computed tokens of the requests on the host, by id
        self._moved = 0  # blocks to copy before the next step
        self.blocks_out = self.blocks_in = self.host_used = self.host_peak = self.recomputed = 0

    def hit(self, request: Request) -> int:
        return self._away.get(request.id, 0)

    def admit(self, request: Request) -> None:
        tokens = self._away.pop(request.id, 0)
        if tokens:
            request.computed = tokens
            request.blocks = -(-tokens // self.block_tokens)
            self._take(request.blocks)
            self._moved += request.blocks
            self.blocks_in += request.blocks
            self.host_used -= request.blocks

    def evict(self, request: Request) -> None:
        blocks = -(-request.computed // self.block_tokens)
        if blocks and self.host_used + blocks <= self.host.blocks:
            self._away[request.id] = request.computed
            self._moved += blocks
            self.blocks_out += blocks
            self.host_used += blocks
            self.host_peak = max(self.host_peak, self.host_used)
        else:
            self.recomputed += bool(blocks)
        super().evict(request)

    def drop(self, request: Request) -> None:
        self.host_used -= -(-self._away.pop(request.id, 0) // self.block_tokens)

    def delay(self) -> float:
        moved, self._moved = self._moved, 0
        return self.host.time(moved)

    def expected_delay(self, request: Request) -> float:
        return self.host.time(self._moved + -(-self._away.get(request.id, 0) // self.block_tokens))

    def use(self) -> SwapUse:
        """What has been moved so far."""
        size = self.host.block_bytes * self.host.devices
        share = self.host_peak / max(self.host.blocks, 1)
        return SwapUse(self.blocks_out * size, self.blocks_in * size, share, self.recomputed)
