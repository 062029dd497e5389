"""Embedding servers, replayed: tokens per second of one request of many sentences after another."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pandas as pd
from yaml import safe_load

from mist.build import build
from mist.catalog import choice_file
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.model import Dtype, ModelSpec
from mist.perf.encoder import Encoder, EncoderEngine
from mist.validation.harness import Facts, Overrides


@dataclass(frozen=True)
class EmbeddingServer:
    """Requests of ``sentences`` texts of ``tokens`` tokens, one after another.

    Facts: model, hardware, encoder, and what the file calls its ``machine`` and engine. ``cores`` of a machine that is
    a part of a CPU, ``dtypes`` of engines whose weights are not of the type that the model's sheet says, ``engines`` by
    their names in conf/encoder where the file's words mean another on this machine.
    """

    sentences: int
    tokens: int
    cores: Mapping[str, int] = field(default_factory=dict)
    dtypes: Mapping[str, Dtype] = field(default_factory=dict)
    engines: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sentences", "tokens"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "must be at least 1")

    def replay(self, facts: Facts, rows: pd.DataFrame, overrides: Overrides) -> Mapping[str, float]:  # noqa: ARG002
        spec = build(HardwareSpec, sheet("hardware", facts["hardware"]))
        if (cores := self.cores.get(facts["machine"])) is not None:
            spec = part(spec, cores)
        encoder = Encoder(
            build(ModelSpec, sheet("model", facts["model"])),
            spec,
            build(EncoderEngine, sheet("encoder", self.engines.get(facts["engine_said"], facts["encoder"]))),
            self.tokens,
            dtype=self.dtypes.get(facts["engine_said"]),
        )
        work = encoder.work(self.sentences)
        shared = max(work.core_seconds / spec.cores, work.traffic / spec.memory_bandwidth) if spec.cores else 0.0
        return {"tokens_per_second": self.sentences * self.tokens / (work.latency + shared)}


def part(spec: HardwareSpec, cores: int) -> HardwareSpec:
    """A virtual machine of so many cores of a CPU, with their part of its peaks and bandwidth."""
    share = cores / spec.cores
    peaks = {dtype: peak * share for dtype, peak in spec.peaks.items()}
    return replace(spec, cores=cores, peaks=peaks, memory_bandwidth=spec.memory_bandwidth * share)


def sheet(group: str, name: str) -> dict[str, object]:
    """The data of one sheet."""
    data: dict[str, object] = safe_load(choice_file(group, name).read_text(encoding="utf-8"))
    return data
