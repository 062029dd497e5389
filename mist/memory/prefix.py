"""Automatic prefix caching: full KV blocks are found again by what they hold."""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from itertools import islice, takewhile

from mist.decoding import Decoding
from mist.memory.pool import BlockPool
from mist.request import Keyed, Request


@dataclass(frozen=True)
class PrefixUse:
    """What admissions found in the prefix cache, resumed requests included (vLLM: prefix cache queries and hits)."""

    hit_tokens: int
    looked_up_tokens: int  # known tokens of the admitted requests

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / max(self.looked_up_tokens, 1)


class PrefixPool(BlockPool):
    """Blocks with reference counts, full ones known by the content of the whole prefix they end.

    As vLLM V1 keeps them (documentation, "Automatic Prefix Caching"): the free list is allocated from its
    front; a block keeps its content until it is allocated again; a request frees its tail first, blocks
    without known content to the front of the list and the others to its end, so that the least recently
    used go first and tails before heads. Content is registered when the step that fills the block begins.
    """

    __slots__ = (
        "_blank", "_cached", "_chain", "_content", "_copies", "_free", "_refs", "_version", "hit_tokens",
        "looked_up_tokens",
    )  # fmt: skip

    def __init__(self, total: int, block_tokens: int) -> None:
        super().__init__(total, block_tokens)
        # the free list in three pieces, front to back: blocks without content, blocks never used, the others
        self._blank: list[int] = []  # last one first
        self._refs: list[int] = []  # of the blocks used so far; those from here on are made when first needed
        self._free: OrderedDict[int, None] = OrderedDict()
        self._content: list[Hashable | None] = []
        self._cached: dict[Hashable, int] = {}  # the block of a content; if several, the first registered
        self._copies: dict[Hashable, dict[int, None]] = {}  # the others, as registered
        self._version = 0  # of everything a lookup depends on
        self._chain: tuple[int, int, int, list[int]] = (
            0,
            0,
            -1,
            [],
        )  # last lookup: request, its tokens, version, blocks
        self.hit_tokens = 0
        self.looked_up_tokens = 0

    @property
    def contents(self) -> int:
        """Distinct contents that can be hit."""
        return len(self._cached)

    def hit(self, request: Request) -> int:
        return len(self._lookup(request)) * self.block_tokens

    def need(self, request: Request, tokens: int) -> int:
        blocks = -(-tokens // self.block_tokens)
        if request.table:
            return blocks - len(request.table)
        chain = self._lookup(request)
        return blocks - len(chain) + list(map(self._refs.__getitem__, chain)).count(0)

    def admit(self, request: Request) -> None:
        chain, refs, free = self._lookup(request), self._refs, self._free
        for block in chain:
            held = refs[block]
            if not held:
                del free[block]
            refs[block] = held + 1
        request.table = list(chain)
        request.blocks = len(chain)
        request.computed = len(chain) * self.block_tokens
        self.hit_tokens += request.computed
        self.looked_up_tokens += request.known
        self._count()

    def grow(self, request: Request, tokens: int) -> None:
        end, size, table = request.computed + tokens, self.block_tokens, request.table
        self._allocate(request, -(-end // size) - len(table))
        first = request.computed // size
        while first and self._content[table[first - 1]] is None:  # filled by drafts, accepted since
            first -= 1
        self._register(request, first, min(end, request.known) // size)  # a draft's content is not known
        request.blocks = len(table)

    def grow_member(self, request: Request, computed: int) -> None:
        if computed % self.block_tokens == 0:
            self._allocate(request, 1)
        if (computed + 1) % self.block_tokens == 0:
            filled = computed // self.block_tokens
            self._register(request, filled, filled + 1)

    def extend(self, decodes: Decoding, ahead: int, steps: int) -> None:
        size = self.block_tokens
        if size == 1:  # one block is allocated and filled in the same step
            for step in range(ahead, ahead + steps):
                for request in sorted(decodes.due(step), key=_admitted):
                    self.grow_member(request, decodes.computed(request) + step)
            return
        # a block that is taken and one that is filled are never the same, so who of the two goes first is all one
        for step in range(ahead, ahead + steps):
            for request in _in_order(decodes.due(step)):
                self._allocate(request, 1)
            for request in _in_order(decodes.due(step + 1)):
                filled = (decodes.computed(request) + step) // size
                self._register(request, filled, filled + 1)

    def steps_to_hit(self, head: Request, running: Collection[Request], decodes: Decoding, most: int) -> int:
        whole = (head.known - 1) // self.block_tokens
        wanted = self._keys(head, whole)
        for request in running:
            computed = decodes.computed(request)
            filling = computed // self.block_tokens
            steps = (filling + 1) * self.block_tokens - computed - 1  # before the step that fills it
            if steps < most and filling < whole and self.key(request, filling) == wanted[filling]:
                most = max(steps, 1)
        return most

    def shared_blocks(self, running: Collection[Request], newcomer: Request | None = None) -> int:
        """First blocks that all of these hold, where nobody else holds any (vLLM: get_num_common_prefix_blocks).

        A ``newcomer`` is about to join them, and would hold what it finds.
        """
        refs, holders, table = self._refs, len(running), next(iter(running)).table
        if newcomer is not None:
            both = zip(table, self._lookup(newcomer), strict=False)
            table = [block for block, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
        for count, block in enumerate(table):
            if refs[block] != holders:
                return count
        return len(table)

    def reserve(self, request: Request) -> None:
        tokens, request.computed = request.computed, 0
        self.grow(request, tokens)
        request.computed = tokens

    def detach(self, request: Request) -> list[int]:
        held, request.table = request.table, []
        request.blocks, request.keys = 0, None
        return held

    def give_back(self, held: list[int]) -> None:
        refs, content, free, blank = self._refs, self._content, self._free, list[int]()
        for block in reversed(held):
            others = refs[block] - 1
            refs[block] = others
            if not others:
                if content[block] is None:
                    blank.append(block)
                else:
                    free[block] = None
        self._blank += reversed(blank)  # the tail in front
        self._count()

    def use(self) -> PrefixUse:
        """What lookups have found so far."""
        return PrefixUse(self.hit_tokens, self.looked_up_tokens)

    def holds(self, key: Hashable) -> bool:
        """Whether a block with this content can be hit."""
        return key in self._cached

    def _lookup(self, request: Request) -> list[int]:
        """The longest chain of cached blocks; the last known token is always computed anew."""
        owner, known, version, chain = self._chain
        if (owner, known, version) != (request.id, request.known, self._version):
            whole = (request.known - 1) // self.block_tokens
            wanted = self._keys(request, whole) if self.key(request, 0) in self._cached else []
            blocks = map(self._cached.get, islice(wanted, whole))
            chain = list(iter(blocks.__next__, None))  # up to the first that is not cached
            self._chain = request.id, request.known, self._version, chain
        return chain

    def key(self, request: Request, index: int) -> Hashable:
        """What block ``index`` of a request holds."""
        keys = request.keys
        return keys[index] if keys is not None and index < len(keys) else self._keys(request, index + 1)[index]

    def _keys(self, request: Request, count: int) -> list[Hashable]:
        """At least ``count`` keys of a request's blocks, from the first on; each is made once."""
        content, size = request.content, self.block_tokens
        if request.keys is None:
            request.keys = content.keys(size) if content is not None and isinstance(content, Keyed) else []
        keys = request.keys
        if len(keys) < count:
            new = range(len(keys), count)
            keys += [(request.id, i) for i in new] if content is None else [content.key(i, size) for i in new]
        return keys

    def _allocate(self, request: Request, count: int) -> None:
        """So many blocks from the front of the free list."""
        if count <= 0:
            return
        taken = self._unused(count)
        if oldest := [self._free.popitem(last=False)[0] for _ in range(count - len(taken))]:
            self._forget(oldest)
            taken += oldest
        refs = self._refs
        for block in taken:
            refs[block] = 1
        request.table += taken
        self.used += count
        if self.used > self.peak:  # noqa: PLR1730 - in the innermost loop
            self.peak = self.used

    def _unused(self, count: int) -> list[int]:
        """At most so many blocks without content, off the free list."""
        blank, refs = self._blank, self._refs
        taken = [blank.pop() for _ in range(min(count, len(blank)))]
        if more := min(count - len(taken), self.total - len(refs)):
            taken += range(len(refs), len(refs) + more)
            refs += [0] * more
            self._content += [None] * more
        return taken

    def _forget(self, blocks: Iterable[int]) -> None:
        """What these hold can be hit there no longer."""
        contents, cached, copies = self._content, self._cached, self._copies
        for block in blocks:
            content, contents[block] = contents[block], None
            if copies and content in copies:
                self._pass_on(block, content)
            else:
                del cached[content]
        self._version += 1

    def _pass_on(self, block: int, content: Hashable) -> None:
        """A content of several blocks is no longer this one's."""
        copies = self._copies[content]
        if block in copies:
            del copies[block]
        else:
            self._cached[content] = following = next(iter(copies))
            del copies[following]
        if not copies:
            del self._copies[content]

    def _register(self, request: Request, first: int, last: int) -> None:
        """Blocks from ``first`` on, up to but without ``last``, are full: others may find what they hold."""
        if first >= last:
            return
        contents, cached = self._content, self._cached
        filled = zip(request.table[first:last], self._keys(request, last)[first:last], strict=True)
        for block, content in filled:
            contents[block] = content
            holder = cached.setdefault(content, block)
            if holder != block:
                self._copies.setdefault(content, {})[block] = None
        self._version += 1

    def _count(self) -> None:
        self.used = len(self._refs) - len(self._blank) - len(self._free)
        self.peak = max(self.peak, self.used)


def _admitted(request: Request) -> int:
    return request.admitted


def _in_order(requests: Collection[Request]) -> Collection[Request]:
    """By admission."""
    return requests if len(requests) < 2 else sorted(requests, key=_admitted)
