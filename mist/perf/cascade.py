"""When an engine reads the prefix that all its running requests have in common once for all of them.

Cascade attention: attention to the common prefix is one kernel for all queries, attention to what is each request's own
another, and a third merges their outputs (Ye et al., "Cascade Inference: Memory Bandwidth Efficient Shared Prefix Batch
Decoding", flashinfer.ai, 2024-02-02; Hydragen, arXiv:2402.05099). vLLM V1 has it for what *all* running requests have
in common, and nothing for a prefix of some of them (vllm-project/vllm pull 11635).
"""

from math import ceil
from typing import Protocol

from mist.perf.base import Explained, Replica, StepModel, StepShape, Stretch
from mist.perf.power import Power

# vllm/v1/attention/backends/flash_attn.py, use_cascade_attention
SHORTEST = 256  # tokens
FEWEST = 8  # requests
TILE = 128  # queries, and KV tokens, of a thread block
MERGED = 1.5  # queries and outputs, in size: merging reads two outputs and writes one


class CascadeSteps(StepModel, Protocol):
    """A step model that knows what a prefix read once saves (``StepShape.shared``), and can tell what it is made of."""

    def decode_stretch(self, decodes: int, context: int, longest: int = 0, shared: int = 0) -> Stretch:
        """As a StepModel's, with so many first tokens of every sequence read once."""

    def explain(self, shape: StepShape) -> tuple[Explained, ...]:
        """The parts of a step, which add up to it; the engine's overheads come last."""


class CascadeLoad(Power, Protocol):
    """What steps ask of the devices, a prefix read once or not."""

    def stretch(self, decodes: int, context: int, steps: int, shared: int = 0) -> float:
        """As a Power's, with so many first tokens of every sequence read once."""


class CascadeRule:
    """vLLM's rule (``use_cascade_attention`` of its FlashAttention backend), on one device of a replica."""

    def __init__(self, replica: Replica) -> None:
        model, tp = replica.model, replica.tp
        self._heads, self._kv_heads = ceil(model.heads / tp), max(1, model.kv_heads // tp)
        self._multiprocessors, self._block = replica.hardware.multiprocessors, replica.engine.block_tokens

    def shared(self, common: int, requests: int, chunks: tuple[tuple[int, int], ...]) -> int:
        """Tokens, of ``common`` that all requests hold, that a step of ``requests`` reads once; 0 if it does not.

        Nobody may read what is computed in this very step: a prompt ``chunk`` has as much in common as it has computed.
        """
        if requests < FEWEST or common < SHORTEST:
            return 0
        if chunks:
            common = min(common, *[past for _, past in chunks]) // self._block * self._block
        return common if common >= SHORTEST and (self._unsplit(chunks) or self._faster(common, requests)) else 0

    def _unsplit(self, chunks: tuple[tuple[int, int], ...]) -> bool:
        """Whether plain attention would not split sequences over thread blocks (FlashDecoding)."""
        return self._heads == self._kv_heads or any(tokens > 1 for tokens, _ in chunks)

    def _faster(self, common: int, requests: int) -> bool:
        """Whether waves of thread blocks over the prefix are fewer than those of FlashDecoding."""
        tiles = ceil(common / TILE)
        waves = ceil(self._heads * ceil(requests / TILE) / self._multiprocessors)
        split = requests * self._kv_heads * ceil(self._heads // self._kv_heads / TILE) * tiles
        return waves * tiles < ceil(split / self._multiprocessors)
