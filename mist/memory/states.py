"""Prefix caching of hybrid models: blocks are of use only up to where a state of linear attention was kept."""

from collections.abc import Hashable

from mist.memory.prefix import PrefixPool
from mist.request import Request


class StatePool(PrefixPool):
    """A prefix cache whose hits end where the states of linear attention are known, too.

    As vLLM V1's ``mamba_cache_mode=align`` does it (vllm-project/vllm pull 30877; documentation, "Automatic Prefix
    Caching", "Hybrid Mamba models"): kernels leave no state behind but that of a step's last token, so a prompt's
    chunks are cut to end with a block, the last of them once more where its last whole block ends, and a state is kept
    of these ends, and of every block that decoding fills; none is known of the blocks within a chunk. A state takes
    ``state_blocks`` blocks, as those of the engine's groups of layers do. It is the copy that others may begin with,
    held by nobody: it stays until it is the least recently used, and is not made where nothing is free.
    """

    __slots__ = ("state_blocks",)

    def __init__(self, total: int, block_tokens: int, state_blocks: int) -> None:
        super().__init__(total, block_tokens)
        self.state_blocks = state_blocks

    def chunk(self, request: Request, tokens: int) -> int:
        size, past = self.block_tokens, request.computed if request.table else self.hit(request)
        last = request.known // size * size
        if past >= last or request.joined >= 0:
            return tokens
        return max(min((past + tokens) // size * size, last) - past, 0)

    def admit(self, request: Request) -> None:
        super().admit(request)
        if request.blocks:
            self._touch(self.key(request, request.blocks - 1))

    def grow(self, request: Request, tokens: int) -> None:
        super().grow(request, tokens)
        end = request.computed + tokens
        if end % self.block_tokens == 0 and end <= request.known:
            self._keep(self.key(request, end // self.block_tokens - 1))

    def detach(self, request: Request) -> list[int]:
        for index in range(len(request.table) - 1, -1, -1):
            content = self._content[request.table[index]]
            if content is not None and self._touch(content):
                break  # the states before it were let go earlier
        return super().detach(request)

    def _register(self, request: Request, first: int, last: int) -> None:
        super()._register(request, first, last)
        if request.joined >= 0:  # a step of one token ends where the block does
            for index in range(first, last):
                self._keep(self.key(request, index))

    def _lookup(self, request: Request) -> list[int]:
        chain = super()._lookup(request)
        end = len(chain)
        while end and not self._has_state(self.key(request, end - 1)):
            end -= 1
        if end < len(chain):
            chain = chain[:end]
            self._chain = request.id, request.known, self._version, chain
        return chain

    def _pieces(self, key: Hashable) -> list[Hashable]:
        """What the blocks hold that the state at the end of a block takes."""
        return [("state", piece, key) for piece in range(self.state_blocks)]

    def _has_state(self, key: Hashable) -> bool:
        return all(piece in self._cached for piece in self._pieces(key))

    def _touch(self, key: Hashable) -> bool:
        """A state is used; whether there is one."""
        if not self._has_state(key):
            return False
        for piece in self._pieces(key):
            self._free.move_to_end(self._cached[piece])
        return True

    def _keep(self, key: Hashable) -> None:
        """Copy a state into free blocks, in place of what was used least recently."""
        if self._touch(key) or self.free < self.state_blocks:
            return
        for piece in self._pieces(key):
            if piece in self._cached:
                self._free.move_to_end(self._cached[piece])
                continue
            block = self._vacant()
            self._content[block], self._cached[piece] = piece, block
            self._free[block] = None
        self._version += 1

    def _vacant(self) -> int:
        """A block off the front of the free list, without its content."""
        if unused := self._unused(1):
            return unused[0]
        block, _ = self._free.popitem(last=False)
        self._forget((block,))
        return block
