"""Which shapes to measure, coarse grids first: whenever time runs out, what there is forms a whole grid."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

Levels = tuple[tuple[Any, ...], ...]

AXES: dict[str, Levels] = {  # edges of matrices and tokens, by level: each level's grid holds those before it
    "tokens": ((1, 16, 128, 1024, 8192), (2, 4, 8, 32, 64, 256, 512, 2048, 4096), (24, 48, 96, 192, 384, 768, 16384)),
    "edge": ((1024, 4096, 16384), (2048, 8192), (512, 3072, 5120, 6144, 12288)),
}
HEADS: Levels = (
    ((32, 8, 128),),
    ((8, 1, 128), (16, 2, 128), (4, 1, 128), (64, 8, 128)),
    ((32, 32, 128), (32, 8, 64), (8, 8, 64)),
)
LENGTHS = ((16, 256, 1024, 4096), (64, 512, 2048, 8192, 16384), (32, 128, 1536, 3072, 6144, 12288))
BATCHES = ((1, 8, 64), (2, 4, 16, 32, 128, 256), (12, 24, 48, 96, 512))
CACHED = ((128, 1024, 8192), (512, 2048, 4096, 32768), (256, 16384, 65536, 131072))
MESSAGES = tuple(128 << power for power in range(23))  # elements, as in the tables of aiconfigurator-core
CHUNK = 32768  # prompt tokens of a context-attention shape, at most
LEVELS = 3


@dataclass(frozen=True)
class Gemm:
    """[m, k] x [k, n]."""

    m: int
    n: int
    k: int
    dtype: str  # bfloat16 or fp8

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k

    @property
    def traffic(self) -> float:
        """Bytes, each operand once."""
        return (2 if self.dtype == "bfloat16" else 1) * (self.m * self.k + self.n * self.k) + 2.0 * self.m * self.n


@dataclass(frozen=True)
class Attention:
    """``batch`` sequences: prompts of ``length`` tokens, or one query each over ``length`` cached tokens."""

    phase: str  # context or generation
    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def flops(self) -> float:
        pairs = self.length**2 / 2 if self.phase == "context" else self.length
        return 4.0 * self.batch * pairs * self.heads * self.head_dim

    @property
    def traffic(self) -> float:
        queries = self.length if self.phase == "context" else 1
        return 4.0 * self.batch * self.head_dim * (self.length * self.kv_heads + queries * self.heads)


Shape = Gemm | Attention


def shapes(level: int, dtypes: tuple[str, ...]) -> Iterator[Shape]:
    """Those of a level that no level before it has."""
    for dtype, m, n, k in product(dtypes, *(_upto(AXES[name], level) for name in ("tokens", "edge", "edge"))):
        if level == 0 or not _in_lower(level, (m, AXES["tokens"]), (n, AXES["edge"]), (k, AXES["edge"])):
            yield Gemm(m, n, k, dtype)
    for phase, lengths in (("context", LENGTHS), ("generation", CACHED)):
        for heads, batch, length in product(_upto(HEADS, level), _upto(BATCHES, level), _upto(lengths, level)):
            new = level == 0 or not _in_lower(level, (heads, HEADS), (batch, BATCHES), (length, lengths))
            if new and (phase == "generation" or batch * length <= CHUNK):
                yield Attention(phase, batch, length, *heads)


def _upto(levels: Levels, level: int) -> list[Any]:
    return [value for values in levels[: level + 1] for value in values]


def _in_lower(level: int, *axes: tuple[Any, Levels]) -> bool:
    return all(value in _upto(levels, level - 1) for value, levels in axes)
