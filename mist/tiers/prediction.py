"""How long a fetch takes, and how long it takes to compute the same."""

from collections.abc import Sequence
from typing import NamedTuple

from mist.clients.llm import LLMClient
from mist.perf.base import StepModel, StepShape
from mist.request import Request
from mist.routing import lanes, predicted_ttft
from mist.tiers.found import Found
from mist.tiers.wiring import Place, Wiring


class Layout(NamedTuple):
    """What tiers have to know of a pool."""

    name: str
    block_tokens: int
    bytes_per_token: float  # of KV, a drafter's included
    layers: int
    port: float  # bytes per second, host links of one replica's devices together
    chunk: int  # most prompt tokens of a step
    stages: Sequence[StepModel]
    state_bytes: float = 0.0  # of one sequence, of linear attention

    @property
    def block_bytes(self) -> float:
        return self.block_tokens * self.bytes_per_token

    def size(self, blocks: int) -> float:
        """Bytes of a cache of so many blocks, with the state at its end."""
        return blocks * self.block_bytes + self.state_bytes


class Choice:
    """The FetchView of one request."""

    def __init__(  # noqa: PLR0917
        self, layout: Layout, wiring: Wiring, request: Request, place: Place, client: LLMClient, found: Found
    ) -> None:
        self._layout, self._wiring, self._request, self._place = layout, wiring, request, place
        self._client, self._found = client, found

    @property
    def tokens(self) -> int:
        return self._found.length * self._layout.block_tokens

    def fetch_time(self) -> float:
        sizes = ((tier, self._layout.size(blocks)) for tier, blocks in self._found.blocks.items())
        return max(self._wiring.expected(tier, self._place, size) for tier, size in sizes)

    def recompute_time(self) -> float:
        layout, known = self._layout, self._request.known
        cached = self._found.first * layout.block_tokens
        whole = predicted_ttft(self._client, layout.stages, layout.chunk, known - cached, cached)
        return whole - self._rest_time(known - cached - self.tokens, cached + self.tokens)

    def _rest_time(self, tokens: int, cached: int) -> float:
        """Seconds for the prompt's last ``tokens`` in steps of their own."""
        layout, time, batches = self._layout, 0.0, lanes(self._client)
        decodes = sum(lane.decoding for lane in batches) // len(batches)
        context = sum(lane.context_by_now for lane in batches) // len(batches)
        while tokens:
            chunk = min(tokens, layout.chunk)
            shape = StepShape(decodes, context, ((chunk, cached),))
            time += sum(stage.step_time(shape) for stage in layout.stages)
            tokens, cached = tokens - chunk, cached + chunk
        return time
