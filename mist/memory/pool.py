"""Paged KV-cache accounting (vLLM, SOSP 2023, section 4: blocks of a fixed number of tokens)."""

from collections.abc import Collection
from typing import Any

from mist.decoding import Decoding
from mist.request import Request


class BlockPool:
    """A fixed number of KV blocks, none shared: counts are all it keeps."""

    __slots__ = ("block_tokens", "peak", "total", "used")

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total = total
        self.block_tokens = block_tokens
        self.used = 0
        self.peak = 0  # most blocks ever used

    @property
    def free(self) -> int:
        return self.total - self.used

    @property
    def quiet(self) -> int:
        """Free blocks that nobody hears of when they are taken."""
        return self.total - self.used

    def hit(self, request: Request) -> int:  # noqa: ARG002
        """Tokens of a waiting request that are cached already."""
        return 0

    def need(self, request: Request, tokens: int) -> int:
        """Free blocks it takes to hold the request's first ``tokens`` tokens."""
        return -(-tokens // self.block_tokens) - request.blocks

    def chunk(self, request: Request, tokens: int) -> int:  # noqa: ARG002
        """How many of a request's next ``tokens`` tokens a step takes, which may be none."""
        return tokens

    def admit(self, request: Request) -> None:
        """Give a waiting request what is cached of it."""

    def grow(self, request: Request, tokens: int) -> None:
        """Blocks for ``tokens`` more tokens of a request outside the lockstep set."""
        blocks = self.need(request, request.computed + tokens)
        request.blocks += blocks
        self._take(blocks)

    def grow_member(self, request: Request, computed: int) -> None:  # noqa: ARG002
        """The block that a member of the lockstep set, ``computed`` tokens long, needs for one more token."""
        self._take(int(computed % self.block_tokens == 0))

    def extend(self, decodes: Decoding, ahead: int, steps: int) -> None:
        """Blocks for ``steps`` more tokens of every member, from ``ahead`` steps hence."""
        blocks = len(decodes.due(ahead)) if steps == 1 else decodes.blocks_for(steps, ahead)
        if blocks:
            self._take(blocks)

    def steps_to_hit(self, head: Request, running: Collection[Request], decodes: Decoding, most: int) -> int:  # noqa: ARG002
        """Decode-only steps, at least 1, at most ``most``, before the cache may hold more of a waiting request."""
        return most

    def reserve(self, request: Request) -> None:
        """Blocks for a request whose cache comes from elsewhere."""
        request.blocks = -(-request.computed // self.block_tokens)
        self._take(request.blocks)

    def release(self, request: Request) -> None:
        self.give_back(self.detach(request))

    def evict(self, request: Request) -> None:
        """Take a preempted request's blocks; it goes back to the line."""
        self.release(request)
        request.computed = 0

    def drop(self, request: Request) -> None:
        """A waiting request will not come back: nothing is kept of it."""

    def reclaim(self) -> bool:
        """Free what a waiting request holds, if nobody else holds anything; whether there was one."""
        return False

    def detach(self, request: Request) -> Any:
        """What the request held, still in use; it is given back later."""
        held, request.blocks = request.blocks, 0
        return held

    def give_back(self, held: Any) -> None:
        """Free what was detached."""
        self.used -= held

    def delay(self) -> float:
        """Seconds by which transfers put off the step about to run; asking starts the count anew."""
        return 0.0

    def expected_delay(self, request: Request) -> float:  # noqa: ARG002
        """What ``delay`` would be, with this request in the step."""
        return 0.0

    def _take(self, blocks: int) -> None:
        self.used += blocks
        if self.used > self.peak:  # noqa: PLR1730 - in the innermost loop
            self.peak = self.used
