"""The set of decoding requests, advanced in lockstep."""

from collections.abc import Collection
from heapq import heapify, heappop, heappush

from mist.request import Request

SLACK = 64  # entries of members gone that are kept before the rest are sorted anew


class Decoding:
    """Requests that each gain one token per step, kept as sums.

    A member remembers the step it joined at instead of being updated at every step, so any number of steps
    costs O(leavers): the total context is a running sum, the leavers a heap keyed by step number, the longest
    context another (from when it is first asked for), and block growth is periodic in the step number. Its slow twin in
    the tests updates every member at every step.
    """

    __slots__ = ("_begun", "_due", "_leaving", "_serial", "block_tokens", "cached", "count", "step")

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.step = 0
        self.count = 0  # members
        self.cached = 0  # tokens, over all members
        # members that need a new block, by step modulo block size
        self._due: list[dict[int, Request]] = [{} for _ in range(block_tokens)]
        self._leaving: list[tuple[int, int, int, Request]] = []  # (last step, admission, serial, member)
        self._serial = 0
        # (step at which its first token would have been cached, member), once the longest was asked for
        self._begun: list[tuple[int, int]] | None = None

    @property
    def longest(self) -> int:
        """Cached tokens of the member that has most; 0 without members."""
        if self._begun is None or len(self._begun) > 2 * self.count + SLACK:
            self._begun = [(r.joined - r.computed, r.id) for due in self._due for r in due.values()]
            heapify(self._begun)
        begun = self._begun
        while begun and not self._is_member(*begun[0]):
            heappop(begun)
        return self.step - begun[0][0] if begun else 0

    def _is_member(self, begun: int, name: int) -> bool:
        member = self._due[begun % self.block_tokens].get(name)
        return member is not None and member.joined - member.computed == begun

    @property
    def blocks_due(self) -> int:
        """Blocks the members need between them to take the next step."""
        return len(self._due[self.step % self.block_tokens])

    def due(self, ahead: int) -> Collection[Request]:
        """Members whose cache is a whole number of blocks when the step ``ahead`` steps from now begins."""
        return self._due[(self.step + ahead) % self.block_tokens].values()

    def computed(self, request: Request) -> int:
        """Cached tokens of a member."""
        return request.computed + self.step - request.joined

    def blocks_for(self, steps: int, ahead: int = 0) -> int:
        """Blocks the members need between them to take ``steps`` steps, from ``ahead`` steps hence."""
        rounds, rest = divmod(steps, self.block_tokens)
        phase = (self.step + ahead) % self.block_tokens
        around = self._due[phase : phase + rest]
        if phase + rest > self.block_tokens:
            around += self._due[: phase + rest - self.block_tokens]
        return rounds * self.count + sum(map(len, around))

    def steps_within(self, blocks: int, steps: int) -> int:
        """The most steps, up to ``steps``, that need no more than ``blocks`` blocks."""
        if (steps // self.block_tokens + 1) * self.count <= blocks:
            return steps
        low = min(steps, blocks // self.count * self.block_tokens)
        high = min(steps, low + 2 * self.block_tokens)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks_for(middle) <= blocks else (low, middle - 1)
        return low

    def steps_to_leaver(self) -> int:
        """Steps until the next member samples its last token."""
        leaving = self._leaving
        while leaving[0][3].leaves != leaving[0][0]:  # it was evicted since
            heappop(leaving)
        return leaving[0][0] - self.step

    def join(self, request: Request) -> None:
        """Add a request whose known tokens are cached but for the last."""
        request.joined = self.step
        request.leaves = self.step + request.left
        self._due[(self.step - request.computed) % self.block_tokens][request.id] = request
        self.count += 1
        self.cached += request.computed
        if self._begun is not None:
            heappush(self._begun, (self.step - request.computed, request.id))
        self._serial += 1
        heappush(self._leaving, (request.leaves, request.admitted, self._serial, request))

    def leave(self, request: Request) -> None:
        """Take a member out and bring its own counts up to date."""
        steps = self.step - request.joined
        del self._due[(request.joined - request.computed) % self.block_tokens][request.id]
        request.computed += steps
        request.known += steps
        request.left -= steps
        request.blocks = -(-request.computed // self.block_tokens)
        request.joined = request.leaves = -1
        self.count -= 1
        self.cached -= request.computed

    def advance(self, steps: int) -> list[Request]:
        """``steps`` tokens for every member; returns those that sampled their last, in admission order."""
        self.step += steps
        self.cached += self.count * steps
        leaving, done = self._leaving, []
        while leaving and leaving[0][0] <= self.step:
            last, _, _, request = heappop(leaving)
            if request.leaves == last:  # else it was evicted since
                self.leave(request)
                done.append(request)
        return done
