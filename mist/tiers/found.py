"""Where a request's prompt goes on beyond its device: looked up in stores, or drawn."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

from mist.clients.llm import LLMClient
from mist.request import Request
from mist.streams import stream
from mist.tiers.spec import DrawnTiers
from mist.tiers.wiring import Place

DRAWS = 65_536  # requests after which drawn hits repeat


class Found(NamedTuple):
    """Blocks ``first`` to ``end`` of a prompt lie in tiers, so many in each."""

    first: int
    end: int
    blocks: Mapping[str, int]
    keys: Mapping[str, Sequence[Hashable]]  # what they hold; nothing where hits are drawn

    @property
    def length(self) -> int:
        return self.end - self.first

    @property
    def places(self) -> str:
        """The tiers it is in."""
        return "+".join(self.blocks)


class Source(Protocol):
    """What says where prompts go on."""

    def find(self, request: Request, place: Place, client: LLMClient) -> Found | None:
        """None where no tier has the next block."""

    def read(self, found: Found, place: Place) -> None:
        """It is being fetched."""

    def attach(self, client: LLMClient, place: Place) -> None:
        """A replica is new."""

    def fail(self, place: Place) -> None:
        """A replica is no more, with all it held."""

    def decoded(self, request: Request, place: Place) -> None:
        """A request leaves a replica of the decode pool."""


class DrawnSource:
    """Hits as a DrawnTiers draws them, by the number of the request, from a stream of their own."""

    def __init__(self, spec: DrawnTiers, name: str, seed: int, block_tokens: int) -> None:
        self.spec, self.block_tokens = spec, block_tokens
        self._chances = stream(seed, f"tiers/{name}").random((DRAWS, len(spec.tiers)))
        self._reusable = spec.reusable.draw(DRAWS, stream(seed, f"tiers/{name}/reusable"))

    def attach(self, client: LLMClient, place: Place) -> None:
        """Nothing is kept."""

    def read(self, found: Found, place: Place) -> None:
        """Nothing is kept."""

    def fail(self, place: Place) -> None:
        """Nothing is kept."""

    def decoded(self, request: Request, place: Place) -> None:
        """Nothing is kept."""

    def find(self, request: Request, place: Place, client: LLMClient) -> Found | None:  # noqa: ARG002
        number = request.id % DRAWS
        blocks = min(int(self._reusable[number]), request.known - 1) // self.block_tokens
        for (name, tier), chance in zip(self.spec.tiers.items(), self._chances[number], strict=True):
            if chance < tier.hit:
                return Found(0, blocks, {name: blocks}, {}) if blocks else None
        return None
