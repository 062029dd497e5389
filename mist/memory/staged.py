"""KV pools of a replica that fetches blocks from tiers behind its device."""

from collections.abc import Callable, Hashable, Iterable, Sequence

from mist.memory.pool import BlockPool
from mist.memory.prefix import PrefixPool
from mist.request import Request

Span = tuple[int, int]  # blocks of a prompt: the first, and the first that is not in it


class StagedPool(BlockPool):
    """Plain blocks, and fetched caches of waiting requests.

    One that has landed waits in host buffers until its request is admitted (``staged``, by request), unless ``hold``
    gives it blocks before.
    """

    __slots__ = ("_landed", "dropped_tokens", "staged")

    def __init__(self, total: int, block_tokens: int) -> None:
        super().__init__(total, block_tokens)
        self.staged: dict[int, Span] = {}
        self._landed: dict[int, tuple[int, int]] = {}  # by request: blocks held, and what its prompt needs beside them
        self.dropped_tokens = 0  # fetched, of requests that left before admission

    @property
    def held_for_waiting(self) -> int:
        """Blocks of caches that have landed and wait."""
        return sum(held for held, _ in self._landed.values())

    @property
    def holders(self) -> int:
        """Waiting requests that hold blocks."""
        return len(self._landed)

    @property
    def waiting_tokens(self) -> int:
        """Fetched, of requests not yet admitted."""
        return (self.held_for_waiting + _blocks(self.staged)) * self.block_tokens

    def hold(self, request: Request) -> None:
        """Blocks for a staged cache, if memory is enough for its prompt and for those of all who hold some already."""
        need = self.need(request, request.known + 1)
        if need + sum(rest for _, rest in self._landed.values()) <= self.free:
            _, end = self.staged.pop(request.id)
            self._landed[request.id] = end, need - end
            self._take(end)

    def hit(self, request: Request) -> int:
        _, staged = self.staged.get(request.id, (0, 0))
        return max(staged, self._landed.get(request.id, (0, 0))[0]) * self.block_tokens

    def need(self, request: Request, tokens: int) -> int:
        return super().need(request, tokens) - self._landed.get(request.id, (0, 0))[0]

    def admit(self, request: Request) -> None:
        landed, _ = self._landed.pop(request.id, (0, 0))
        _, end = self.staged.pop(request.id, (0, landed))
        request.blocks = end
        request.computed = end * self.block_tokens
        self._take(end - landed)

    def drop(self, request: Request) -> None:
        landed, _ = self._landed.pop(request.id, (0, 0))
        first, end = self.staged.pop(request.id, (0, landed))
        self.used -= landed
        self.dropped_tokens += (end - first) * self.block_tokens

    def reclaim(self) -> bool:
        if not self._landed or self.used > self.held_for_waiting:
            return False
        id_, (end, _) = self._landed.popitem()
        self.used -= end
        self.staged[id_] = 0, end
        return True


class TieredPool(PrefixPool):
    """A prefix cache above tiers: what it finds goes on with what was fetched.

    A fetched span that has landed waits in host buffers until its request is admitted (``staged``, by request), unless
    ``hold`` gives it blocks before: known by content like any other, and held with those before it. It is of no use if
    the blocks before it have gone meanwhile, or its own have come: such tokens are ``wasted``. ``evicted`` is told
    every content that leaves the device for good, ``kept`` the contents of whoever gives up its blocks; None of either
    is nobody.
    """

    __slots__ = ("_landed", "dropped_tokens", "evicted", "fetched_tokens", "kept", "staged", "wasted_tokens")

    def __init__(self, total: int, block_tokens: int) -> None:
        super().__init__(total, block_tokens)
        self.staged: dict[int, Span] = {}
        # by request: blocks held, how many of them were fetched, and what its prompt needs beside them
        self._landed: dict[int, tuple[list[int], int, int]] = {}
        self.evicted: Callable[[Hashable], None] | None = None
        self.kept: Callable[[Sequence[Hashable]], None] | None = None
        self.fetched_tokens = self.wasted_tokens = 0
        self.dropped_tokens = 0  # fetched, of requests that left before admission

    @property
    def quiet(self) -> int:
        """Free blocks that nobody hears of when they are taken."""
        return self.free if self.evicted is None else len(self._blank) + self.total - len(self._refs)

    @property
    def held_for_waiting(self) -> int:
        """Blocks of caches that have landed and wait, and of what lies before them; each counts once."""
        return len({block for blocks, *_ in self._landed.values() for block in blocks})

    @property
    def holders(self) -> int:
        """Waiting requests that hold blocks."""
        return len(self._landed)

    @property
    def waiting_tokens(self) -> int:
        """Fetched, of requests not yet admitted."""
        return (sum(fetched for _, fetched, _ in self._landed.values()) + _blocks(self.staged)) * self.block_tokens

    def hold(self, request: Request) -> None:
        """Blocks for a staged cache, if memory is enough for its prompt and for those of all who hold some already."""
        end, rest = self._usable(request), sum(rest for *_, rest in self._landed.values())
        if not end or self.need(request, request.known + 1) + rest > self.free:
            return
        first, _ = self.staged.pop(request.id)
        counts = self.hit_tokens, self.looked_up_tokens
        super().admit(request)
        found = request.blocks
        super().grow(request, (end - found) * self.block_tokens)
        rest = -(-(request.known + 1) // self.block_tokens) - end
        self._landed[request.id] = request.table, end - found, rest
        request.table, request.blocks, request.computed = [], 0, 0
        self.hit_tokens, self.looked_up_tokens = counts
        self.wasted_tokens += (found - first) * self.block_tokens

    def hit(self, request: Request) -> int:
        found, end = len(self._lookup(request)), self._usable(request)
        return max(found, end) * self.block_tokens

    def _usable(self, request: Request) -> int:
        """Where a span in host buffers ends that goes on from what is found here; 0 where there is none."""
        first, end = self.staged.get(request.id, (0, 0))
        return end if first <= len(self._lookup(request)) < end else 0

    def admit(self, request: Request) -> None:
        blocks, landed, _ = self._landed.pop(request.id, ([], 0, 0))
        if blocks:
            self.give_back(blocks)  # and taken again with all that is found
        end = self._usable(request)
        first, fetched = self.staged.pop(request.id, (0, 0))
        super().admit(request)
        self.hit_tokens -= landed * self.block_tokens
        used = max(end * self.block_tokens - request.computed, 0)
        self.fetched_tokens += used + landed * self.block_tokens
        self.wasted_tokens += (fetched - first) * self.block_tokens - used
        if used:
            super().grow(request, used)
            request.computed += used

    def drop(self, request: Request) -> None:
        first, end = self.staged.pop(request.id, (0, 0))
        blocks, fetched, _ = self._landed.pop(request.id, ([], 0, 0))
        self.give_back(blocks)
        self.dropped_tokens += (end - first + fetched) * self.block_tokens

    def reclaim(self) -> bool:
        if not self._landed or self.used > self.held_for_waiting:
            return False
        id_, (blocks, fetched, _) = self._landed.popitem()
        self.give_back(blocks)
        self.staged[id_] = len(blocks) - fetched, len(blocks)
        return True

    def detach(self, request: Request) -> list[int]:
        if self.kept is not None:
            known = [self._content[block] for block in request.table]
            self.kept([content for content in known if content is not None])
        return super().detach(request)

    def _forget(self, blocks: Iterable[int]) -> None:
        if self.evicted is None:
            super()._forget(blocks)
            return
        for block in blocks:
            content = self._content[block]
            if content not in self._copies:
                self.evicted(content)
            super()._forget((block,))


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


def _blocks(spans: dict[int, Span]) -> int:
    return sum(end - first for first, end in spans.values())
