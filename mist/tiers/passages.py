"""Passages whose KV is kept apart, and reused wherever they stand in a prompt."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mist.clients.llm import LLMClient
from mist.errors import InputError
from mist.kernel import Kernel
from mist.memory.staged import PassagePool, TieredPool
from mist.request import Passage, Passaged, Request
from mist.tiers.found import Found
from mist.tiers.spec import StoredTiers
from mist.tiers.stores import StoredSource
from mist.tiers.wiring import Place, Wiring


@dataclass(frozen=True)
class PassageTiers(StoredTiers):
    """``tiers`` that keep the KV of passages, for prompts that hold them anywhere, in any order.

    CacheBlend (arXiv:2405.16444): the KV of a passage that was computed in another place is loaded and
    ``recompute``, a share of its tokens, computed anew, with attention to all before them; to choose those, the first
    ``whole_layers`` layers are computed for all of them. EPIC (arXiv:2410.15332) computes the first tokens of every
    passage anew and chooses nothing. What the device finds as a prefix is taken from there.

    What is computed anew stands all over the prompt; here it is behind what is not, so that its query-key pairs are
    counted a little high. What reuse does to answers is not modelled.
    """

    recompute: float = 0.15
    whole_layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recompute < 1:
            raise InputError("recompute", self.recompute, "must lie in [0, 1)")
        if self.whole_layers < 0:
            raise InputError("whole_layers", self.whole_layers, "must not be negative")
        name, tier = next(iter(self.tiers.items()))
        if tier.write != "through":
            why = "passages are known apart from the device's blocks: they are written when a request gives them up"
            raise InputError(f"tiers.{name}.write", tier.write, why, ["through"])
        if self.decoded:
            raise InputError("decoded", "true", "passages are of prompts: what is decoded is none", ["false"])

    def check(self, prefix_caching: bool) -> None:
        if not prefix_caching:
            raise InputError("tiers", "PassageTiers", "goes beside the prefix cache of the device: prefix_caching=true")

    def kept(self, tokens: int, layers: int) -> int:
        """Of so many reused tokens, those whose work is spared, in a model of so many layers."""
        return int(tokens * (1 - self.recompute) * max(1 - self.whole_layers / layers, 0.0))


class PassageSource(StoredSource):
    """The stores of a PassageTiers: blocks of passages by which passage and where in it."""

    spec: PassageTiers

    def __init__(
        self, kernel: Kernel, spec: PassageTiers, wiring: Wiring, block: tuple[int, float], layers: int
    ) -> None:
        super().__init__(kernel, spec, wiring, block)
        self.layers = layers

    def tell(self, kv: TieredPool, place: Place) -> None:
        assert isinstance(kv, PassagePool)
        kv.left = partial(self._left, place)

    def find(self, request: Request, place: Place, client: LLMClient) -> Found | None:
        client.catch_up()
        first, now = client.kv.hit(request) // self.block_tokens, self.kernel.now
        shelves = {name: self.shelf(name, place) for name in self.spec.tiers}
        keys: defaultdict[str, list[Hashable]] = defaultdict(list)
        reused = 0
        for key, tokens in self._blocks(request, first * self.block_tokens, request.known - 1):
            name = next((name for name, shelf in shelves.items() if shelf.holds(key, now)), None)
            if name is not None and key not in keys[name]:
                keys[name].append(key)
                reused += tokens
        last = (request.known - 1) // self.block_tokens
        end = min(first + self.spec.kept(reused, self.layers) // self.block_tokens, last)
        found: Mapping[str, Sequence[Hashable]] = {name: own for name, own in keys.items() if own}
        return Found(first, end, {name: len(own) for name, own in found.items()}, found) if end > first else None

    def _blocks(self, request: Request, begin: int, end: int) -> Iterator[tuple[Hashable, int]]:
        """Blocks of its passages between two tokens of its prompt, and the tokens of each."""
        size, content = self.block_tokens, request.content
        passages: Sequence[Passage] = content.passages() if isinstance(content, Passaged) else ()
        for name, start, length in passages:
            for block in range(-(-length // size)):
                tokens = min(size, length - block * size)
                if begin <= start + block * size and start + block * size + tokens <= end:
                    yield (name, block), tokens

    def _left(self, place: Place, request: Request) -> None:
        """A request gives up its KV: of its passages, what it had computed is written."""
        keys = [key for key, _ in self._blocks(request, 0, request.computed)]
        for name, tier in self.spec.tiers.items():
            if keys and tier.write == "through":
                self._put(name, place, keys)
