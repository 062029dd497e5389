"""Speculative decoding: who drafts, how many tokens a step, and how many of them the model accepts.

Every decoding request is given ``tokens`` drafts a step; the model verifies them and the token it would have
computed anyway in one pass, keeps the accepted prefix and samples one token more (Leviathan et al.,
arXiv:2211.17192, algorithm 1; Chen et al., arXiv:2302.01318).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from math import isclose
from typing import Any, Final, Protocol

from mist.errors import InputError
from mist.model import BYTES_PER_ELEMENT, ModelSpec
from mist.units import Seconds


class Speculation(Protocol):
    """A way of drafting, or none."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def tokens(self) -> int:
        """Draft tokens of a decoding request in one step; 0 is no speculation."""

    @property
    def pass_overhead(self) -> Seconds:
        """Seconds that every pass of the drafter takes beside its roofline."""

    def drafter(self, target: ModelSpec) -> ModelSpec | None:
        """What drafts for ``target`` on its devices; None costs no step time and no memory."""

    def weight_bytes(self, target: ModelSpec) -> float:
        """What the drafter adds to the weights in memory."""

    def survival(self) -> tuple[float, ...]:
        """Probability that at least 1, 2, ..., ``tokens`` drafts of one step are accepted."""

    def check(self, target: ModelSpec) -> None:
        """Raises InputError where it cannot draft for ``target``."""


class WithoutModel:
    """Nothing that drafts lies on the devices: no step time, no memory."""

    @property
    def pass_overhead(self) -> Seconds:
        return 0.0

    def drafter(self, target: ModelSpec) -> ModelSpec | None:  # noqa: ARG002
        return None

    def weight_bytes(self, target: ModelSpec) -> float:  # noqa: ARG002
        return 0.0


@dataclass(frozen=True)
class NoSpeculation(WithoutModel):
    """One token a step."""

    @property
    def name(self) -> str:
        return "none"

    @property
    def tokens(self) -> int:
        return 0

    def survival(self) -> tuple[float, ...]:
        return ()

    def check(self, target: ModelSpec) -> None:
        pass


OFF: Final = NoSpeculation()


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """How many tokens are drafted a step and how many of them are accepted, one of two ways.

    ``acceptance`` is the probability that a draft is accepted given that those before it were, the alpha of
    arXiv:2211.17192: a step yields (1 - alpha^(tokens + 1)) / (1 - alpha) tokens on average (its equation 1).
    ``accepted`` gives the probability of every number of accepted drafts itself, ``{0: 0.3, 1: 0.2, 2: 0.5}``.
    """

    tokens: int
    acceptance: float | None = None
    accepted: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError("tokens", self.tokens, "must be at least 1; speculation=none drafts nothing")
        if self.accepted is not None:
            self._check_shares(self.accepted)
        elif self.acceptance is None:
            raise InputError("acceptance", "(nothing)", "acceptance or accepted must be given")
        elif not 0 <= self.acceptance <= 1:
            raise InputError("acceptance", self.acceptance, "a probability lies in [0, 1]")

    def _check_shares(self, shares: Mapping[str, float]) -> None:
        if self.acceptance is not None:
            raise InputError("acceptance", self.acceptance, "has no effect beside accepted; set it to null")
        numbers = [str(number) for number in range(self.tokens + 1)]
        for number, share in shares.items():
            if str(number) not in numbers:
                raise InputError("accepted", number, f"{self.tokens} tokens are drafted", numbers)
            if share < 0:
                raise InputError(f"accepted.{number}", share, "must not be negative")
        if not isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
            raise InputError("accepted", sum(shares.values()), "the probabilities must sum to 1")

    def survival(self) -> tuple[float, ...]:
        if self.acceptance is not None:
            return tuple([self.acceptance**number for number in range(1, self.tokens + 1)])
        shares = {int(number): share for number, share in (self.accepted or {}).items()}
        beyond = accumulate(shares.get(number, 0.0) for number in range(self.tokens, 0, -1))
        return tuple(beyond)[::-1]

    def check(self, target: ModelSpec) -> None:
        if target.kind == "encoder":
            raise InputError("", type(self).__name__, f"{target.name} is an encoder, it decodes nothing")


@dataclass(frozen=True, kw_only=True)
class NGram(WithoutModel, Drafts):
    """Drafts are what followed the last few tokens when they occurred before: no model, no step time, no memory."""

    @property
    def name(self) -> str:
        return "n-gram"


@dataclass(frozen=True, kw_only=True)
class Head(Drafts):
    """EAGLE (arXiv:2401.15077) and MTP (arXiv:2412.19437, section 2.2): ``layers`` more layers over the model's own
    last hidden state, with its embedding and language head, run once for every drafted token.
    """

    layers: int = 1
    pass_overhead: Seconds = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise InputError("layers", self.layers, "must be at least 1")
        _check_overhead(self.pass_overhead)

    @property
    def name(self) -> str:
        return "head of 1 layer" if self.layers == 1 else f"head of {self.layers} layers"

    def drafter(self, target: ModelSpec) -> ModelSpec | None:
        layers: dict[str, Any] = {"layers": self.layers, "dense_layers": 0, "window_layers": 0, "linear_layers": 0}
        head: ModelSpec = replace(target, name=f"{target.name}'s drafting head", positions=0, **layers)
        return head

    def weight_bytes(self, target: ModelSpec) -> float:
        """Its layers and the matrix that joins embedding and hidden state; embedding and head are the target's."""
        head = self.drafter(target)
        assert head is not None
        width = BYTES_PER_ELEMENT[target.weight_dtype]
        joint = self.layers * 2 * target.hidden**2 * width
        return head.weight_bytes - head.outer_parameters * max(width, 2.0) + joint


@dataclass(frozen=True, kw_only=True)
class DraftModel(Drafts):
    """A smaller model of the same vocabulary, on the same devices, cut as the target is, with a KV cache of its own."""

    model: ModelSpec
    pass_overhead: Seconds = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_overhead(self.pass_overhead)

    @property
    def name(self) -> str:
        return self.model.name

    def drafter(self, target: ModelSpec) -> ModelSpec | None:  # noqa: ARG002
        return self.model

    def weight_bytes(self, target: ModelSpec) -> float:  # noqa: ARG002
        return self.model.weight_bytes

    def check(self, target: ModelSpec) -> None:
        super().check(target)
        if self.model.vocabulary != target.vocabulary:  # as vLLM's SpeculativeConfig demands
            why = f"its vocabulary has {self.model.vocabulary} tokens, that of {target.name} {target.vocabulary}"
            raise InputError("model", self.model.name, f"cannot draft for another vocabulary: {why}")
        if self.model.kind == "encoder":
            raise InputError("model", self.model.name, "an encoder cannot draft")


def _check_overhead(seconds: float) -> None:
    if seconds < 0:
        raise InputError("pass_overhead", seconds, "must not be negative")
