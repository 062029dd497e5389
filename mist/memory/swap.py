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
    ``bandwidth`` bytes per second each. A sequence has a state of ``state_bytes`` on each beside its blocks, where
    there is linear attention.
    """

    blocks: int
    block_bytes: float
    devices: int
    bandwidth: float
    state_bytes: float = 0.0

    def holds(self, blocks: int, sequences: int) -> bool:
        """Whether there is room for so many blocks of so many sequences."""
        return self.taken(blocks, sequences) <= self.blocks

    def taken(self, blocks: int, sequences: int) -> float:
        """Blocks that these and their states take."""
        return blocks + sequences * self.state_bytes / self.block_bytes

    def time(self, blocks: int, states: int = 0) -> float:
        """Seconds to copy that many blocks and states, one way."""
        size = blocks * self.block_bytes + states * self.state_bytes
        return size / self.bandwidth if self.bandwidth < inf else 0.0


class SwapPool(BlockPool):
    """Blocks of evicted requests go to the host while it has room, and come back at the next admission.

    As vLLM V0 did it (v0.6, ``core/scheduler.py``, ``worker/cache_engine.py``): the blocks to move in and out are
    copied on the stream of the model, before the step that follows, so a step waits for both, one after the
    other, and nothing overlaps. V0 gave up when the host was full; here the request is computed again.
    """

    __slots__ = (
        "_away", "_moved", "blocks_in", "blocks_out", "host", "host_peak", "host_used", "recomputed", "states_in",
        "states_out",
    )  # fmt: skip

    def __init__(self, total: int, block_tokens: int, host: HostMemory) -> None:
        super().__init__(total, block_tokens)
        self.host = host
        self._away: dict[int, int] = {}  # computed tokens of the requests on the host, by id
        self._moved = 0, 0  # blocks and states to copy before the next step
        self.blocks_out = self.blocks_in = self.states_out = self.states_in = self.host_used = self.recomputed = 0
        self.host_peak = 0.0  # blocks, states included

    def hit(self, request: Request) -> int:
        return self._away.get(request.id, 0)

    def admit(self, request: Request) -> None:
        tokens = self._away.pop(request.id, 0)
        if tokens:
            request.computed = tokens
            request.blocks = -(-tokens // self.block_tokens)
            self._take(request.blocks)
            self._moved = self._moving(request.blocks)
            self.blocks_in += request.blocks
            self.states_in += 1
            self.host_used -= request.blocks

    def evict(self, request: Request) -> None:
        blocks = -(-request.computed // self.block_tokens)
        if blocks and self.host.holds(self.host_used + blocks, len(self._away) + 1):
            self._away[request.id] = request.computed
            self._moved = self._moving(blocks)
            self.blocks_out += blocks
            self.states_out += 1
            self.host_used += blocks
            self.host_peak = max(self.host_peak, self.host.taken(self.host_used, len(self._away)))
        else:
            self.recomputed += bool(blocks)
        super().evict(request)

    def drop(self, request: Request) -> None:
        self.host_used -= -(-self._away.pop(request.id, 0) // self.block_tokens)

    def delay(self) -> float:
        moved, self._moved = self._moved, (0, 0)
        return self.host.time(*moved)

    def expected_delay(self, request: Request) -> float:
        blocks = -(-self._away.get(request.id, 0) // self.block_tokens)
        return self.host.time(*(self._moving(blocks) if blocks else self._moved))

    def _moving(self, blocks: int) -> tuple[int, int]:
        """What is to be copied, with one sequence of so many blocks more."""
        return self._moved[0] + blocks, self._moved[1] + 1

    def use(self) -> SwapUse:
        """What has been moved so far."""
        size, state = (each * self.host.devices for each in (self.host.block_bytes, self.host.state_bytes))
        out, back = self.blocks_out * size + self.states_out * state, self.blocks_in * size + self.states_in * state
        share = self.host_peak / max(self.host.blocks, 1)
        return SwapUse(out, back, share, self.recomputed)
