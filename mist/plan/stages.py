"""Pipelines: what requests of one kind do, as a tree of stages in which some things are left to chance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from mist.errors import InputError
from mist.plan.corpus import ENDLESS, Corpus
from mist.plan.draws import Chance
from mist.plan.steps import Generating, Sending, Serving, Step, Steps
from mist.plan.times import Times
from mist.request import Stage
from mist.units import Bytes
from mist.workload.lengths import Lengths

Kind = Literal["route", "embed", "retrieve", "rerank", "fetch_kv", "score", "process", "tool"]


class PipelineStage(Protocol):
    """A stage of a pipeline."""

    def unfold(self, place: str, chance: Chance) -> Steps:
        """What one request does here."""

    def inner(self) -> Mapping[str, Mapping[str, "PipelineStage"]]:
        """The stages inside this one by where they stand, "" for its own ``stages``."""


def unfold(stages: Mapping[str, PipelineStage], chance: Chance, within: str = "") -> Steps:
    """The steps of one request through ``stages``, in the order of the map."""
    steps: list[Step] = []
    for name, stage in stages.items():
        steps.extend(stage.unfold(f"{within}{name}", chance))
    return tuple(steps)


def everything(stages: Mapping[str, PipelineStage], within: str = "stages") -> Iterator[tuple[str, PipelineStage]]:
    """Every stage, however deep, by its address."""
    for name, stage in stages.items():
        yield f"{within}.{name}", stage
        for part, inner in stage.inner().items():
            yield from everything(inner, ".".join(p for p in (within, name, part, "stages") if p))


@dataclass(frozen=True)
class Pipeline:
    """What every request does: its stages, one after another."""

    stages: Mapping[str, PipelineStage]

    def __post_init__(self) -> None:
        check_stages(self.stages)
        check_corpora(self.stages)

    @property
    def plain(self) -> bool:
        """Whether it is one generation of the request's own answer and nothing else."""
        return [s == Generate(pool=getattr(s, "pool", None)) for s in self.stages.values()] == [True]


@dataclass(frozen=True)
class Generate:
    """A model writes ``output`` tokens (None: the request's own answer) after reading its prompt.

    The prompt is the whole context so far, or one of its own of ``prompt`` tokens, with ``instruction`` tokens
    behind it. What it wrote stays in the context of later stages if it ``keeps`` it. If it is what the user reads, they
    read along as it ``streams``, or see it whole when the plan has ended. ``pool`` is the pool that requests enter
    (of a prefill and a decode pool the former); None is the only one.
    """

    pool: str | None = None
    output: Lengths | None = None
    prompt: Lengths | None = None
    instruction: int = 0
    keeps: bool = True
    streams: bool = True

    def __post_init__(self) -> None:
        check_least("instruction", self.instruction, 0)

    def unfold(self, place: str, chance: Chance) -> Steps:
        output = None if self.output is None else chance.number(f"{place}.output", self.output)
        prompt = None if self.prompt is None else chance.number(f"{place}.prompt", self.prompt)
        return (Generating(place, self.pool, self.instruction, prompt, output, self.keeps, self.streams),)

    def inner(self) -> Mapping[str, Mapping[str, PipelineStage]]:
        return {}


@dataclass(frozen=True)
class Serve:
    """A visit to ``station`` with ``items`` things to work on, of ``tokens`` each (None: the whole context).

    The context then grows by ``pieces`` of ``piece_tokens`` each: passages found, a tool's answer. ``time`` says how
    long it takes at a station that has no model of its own. ``corpus`` says which pieces others are given too.
    """

    kind: Kind
    station: str
    items: int = 1
    tokens: Lengths | None = None
    time: Times | None = None
    pieces: int = 1
    piece_tokens: Lengths | None = None
    corpus: Corpus = ENDLESS

    def __post_init__(self) -> None:
        check_least("items", self.items, 1)
        check_least("pieces", self.pieces, 0 if self.piece_tokens is not None else 1)
        if self.pieces > 1 and self.piece_tokens is None:
            raise InputError("pieces", self.pieces, "has no effect without piece_tokens")
        if self.corpus.passages is not None and (self.piece_tokens is None or self.corpus.passages < self.pieces):
            why = (
                "has no effect without piece_tokens" if self.piece_tokens is None else f"{self.pieces} pieces are found"
            )
            raise InputError("corpus.passages", self.corpus.passages, why)

    def unfold(self, place: str, chance: Chance) -> Steps:
        tokens = None if self.tokens is None else chance.number(f"{place}.tokens", self.tokens)
        seconds = None if self.time is None else chance.seconds(f"{place}.time", self.time)
        grown, added = self.piece_tokens, 0
        named = () if grown is None else self.corpus.find(place, self.pieces, grown, chance)
        if named:
            added = sum(length for _, length in named)
        elif grown is not None:
            added = sum(chance.number(f"{place}.pieces.{piece}", grown) for piece in range(self.pieces))
        return (Serving(place, Stage(self.kind), self.station, self.items, tokens, seconds, added, named),)

    def inner(self) -> Mapping[str, Mapping[str, PipelineStage]]:
        return {}


@dataclass(frozen=True)
class Transfer:
    """Bytes over one of the cluster's ``links``, shared with whatever else is on it.

    ``size``, and ``per_token`` for each token of the context.
    """

    link: str
    size: Bytes = 0.0
    per_token: Bytes = 0.0

    def __post_init__(self) -> None:
        for field in ("size", "per_token"):
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "must not be negative")

    def unfold(self, place: str, chance: Chance) -> Steps:  # noqa: ARG002
        return (Sending(place, self.link, self.size, self.per_token),)

    def inner(self) -> Mapping[str, Mapping[str, PipelineStage]]:
        return {}


def names_corpus(pipeline: Pipeline) -> bool:
    """Whether some of its searches find what others found."""
    searches = [stage for _, stage in everything(pipeline.stages) if isinstance(stage, Serve)]
    return any(stage.corpus.passages is not None for stage in searches)


def check_corpora(stages: Mapping[str, PipelineStage]) -> None:
    """InputError where corpora of one name have not the same passages."""
    known: dict[str, tuple[str, Serve]] = {}
    for place, stage in everything(stages):
        if not isinstance(stage, Serve) or stage.corpus.passages is None:
            continue
        name = stage.corpus.name
        first, other = known.setdefault(name, (place, stage))
        if (stage.corpus.passages, stage.piece_tokens) != (other.corpus.passages, other.piece_tokens):
            why = f"{first} searches a corpus of this name that has other passages (passages, piece_tokens)"
            raise InputError(f"{place}.corpus.name", name, why)


def check_stages(stages: Mapping[str, PipelineStage]) -> None:
    """InputError where there are none."""
    if not stages:
        raise InputError("stages", "(nothing)", "at least one stage is needed")


def check_least(field: str, value: int, least: int) -> None:
    """InputError if it is less."""
    if value < least:
        raise InputError(field, value, f"must be at least {least}")


CHAT = Pipeline({"answer": Generate()})
