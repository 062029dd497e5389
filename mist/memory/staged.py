"""KV pools of a replica that fetches blocks from tiers behind its device."""

from collections.abc import Callable, Hashable, Sequence

from mist.memory.pool import BlockPool
from mist.memory.prefix import PrefixPool
from mist.request import Request


class StagedPool(BlockPool):
    """Plain blocks; a fetched cache is in them when its request is admitted."""

    __slots__ = ("staged",)

    def __init__(self, total: int, block_tokens: int) -> None:
        super().__init__(total, block_tokens)
        self.staged: dict[int, tuple[int, int]] = {}  # fetched blocks of waiting requests, first and end, by id

    def hit(self, request: Request) -> int:
        return self.staged.get(request.id, (0, 0))[1] * self.block_tokens

    def admit(self, request: Request) -> None:
        _, end = self.staged.pop(request.id, (0, 0))
        request.blocks = end
        request.computed = end * self.block_tokens
        self._take(end)


class TieredPool(PrefixPool):
    """A prefix cache above tiers: what it finds goes on with what was fetched.

    A fetched span waits in ``staged`` until its request is admitted; its blocks are then allocated and known by content
    like any other. It is of no use if the blocks before it have gone meanwhile, or its own have come: such tokens are
    ``wasted``. ``evicted`` is told every content that leaves the device for good, ``kept`` the contents of whoever
    gives up its blocks; None of either is nobody.
    """

    __slots__ = ("evicted", "fetched_tokens", "kept", "staged", "wasted_tokens")

    def __init__(self, total: int, block_tokens: int) -> None:
        super().__init__(total, block_tokens)
        self.staged: dict[int, tuple[int, int]] = {}
        self.evicted: Callable[[Hashable], None] | None = None
        self.kept: Callable[[Sequence[Hashable]], None] | None = None
        self.fetched_tokens = self.wasted_tokens = 0

    @property
    def quiet(self) -> int:
        """Free blocks that nobody hears of when they are taken."""
        return self.free if self.evicted is None else len(self._blank) + self.total - len(self._refs)

    def hit(self, request: Request) -> int:
        found, end = len(self._lookup(request)), self._usable(request)
        return max(found, end) * self.block_tokens

    def _usable(self, request: Request) -> int:
        """Where a fetched span ends that goes on from what is found here; 0 where there is none."""
        first, end = self.staged.get(request.id, (0, 0))
        return end if first <= len(self._lookup(request)) < end else 0

    def admit(self, request: Request) -> None:
        end = self._usable(request)
        first, fetched = self.staged.pop(request.id, (0, 0))
        super().admit(request)
        used = max(end * self.block_tokens - request.computed, 0)
        self.fetched_tokens += used
        self.wasted_tokens += (fetched - first) * self.block_tokens - used
        if used:
            super().grow(request, used)
            request.computed += used

    def detach(self, request: Request) -> list[int]:
        if self.kept is not None:
            known = [self._content[block] for block in request.table]
            self.kept([content for content in known if content is not None])
        return super().detach(request)

    def _front(self) -> int:
        block = super()._front()
        content = self._content[block]
        if self.evicted is not None and content is not None:
            holders = self._cached[content]
            if isinstance(holders, int) or len(holders) == 1:
                self.evicted(content)
        return block


class PassagePool(TieredPool):
    """A prefix cache above tiers that keep passages; ``left`` is told of every request that gives up its blocks."""

    __slots__ = ("left",)

    def __init__(self, total: int, block_tokens: int) -> None:
        super().__init__(total, block_tokens)
        self.left: Callable[[Request], None] | None = None

    def detach(self, request: Request) -> list[int]:
        if self.left is not None:
            self.left(request)
        return super().detach(request)
