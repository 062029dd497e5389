"""Paged KV-cache accounting (vLLM, SOSP 2023, section 4: blocks of a fixed number of tokens)."""

from mist.request import Request


class BlockPool:
    """A fixed number of KV blocks; each is free or held by one request."""

    __slots__ = ("block_tokens", "peak", "total", "used")

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total = total
        self.block_tokens = block_tokens
        self.used = 0
        self.peak = 0  # most blocks ever used

    @property
    def free(self) -> int:
        return self.total - self.used

    def shortfall(self, request: Request, tokens: int) -> int:
        """Blocks the request lacks to cache ``tokens`` more."""
        return -(-(request.computed + tokens) // self.block_tokens) - request.blocks

    def take(self, blocks: int) -> None:
        self.used += blocks
        self.peak = max(self.peak, self.used)

    def give_back(self, blocks: int) -> None:
        self.used -= blocks

    def grow(self, request: Request, tokens: int) -> None:
        blocks = self.shortfall(request, tokens)
        request.blocks += blocks
        self.take(blocks)

    def release(self, request: Request) -> None:
        self.used -= request.blocks
        request.blocks = 0
