"""What perf=measured has timings of: every model, on every device with operator tables, with every engine's kernels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mist.build import build
from mist.catalog import groups, nearest
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.model import ModelSpec
from mist.perf.base import Replica
from mist.perf.engine import EngineProfile
from mist.perf.measured import Measured
from mist.perf.tables.operators import Operators, operators
from mist.validation.embedding import sheet

ENGINES = {"vllm": "vllm", "sglang": "sglang_0_5", "trtllm": "trtllm_0_17"}  # kernels, and a profile with them
QUANTISED = ("fp8", "fp4")  # what a model published in 16 bits is served in too, where a device multiplies it
WEIGHTS = 0.8  # share of the memory that weights may take, so that some is left for a cache
MOST = 8  # devices of a replica


@dataclass(frozen=True)
class Cell:
    """One model with these weights on the fewest devices (1, 2, 4 or 8) that hold it."""

    model: str
    weights: str
    hardware: str
    kernels: str
    devices: int
    transferred: tuple[str, ...] = ()  # operators told from other shapes, or from like kernels
    refused: str = ""  # why there are no step times; empty: there are


@dataclass(frozen=True)
class Coverage:
    """All cells."""

    cells: Sequence[Cell]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"cells": [asdict(cell) for cell in self.cells]}


def timed_hardware(names: Sequence[str] = ()) -> dict[str, HardwareSpec]:
    """Those devices whose operators the package has."""
    found = {name: build(HardwareSpec, sheet("hardware", name)) for name in groups()["hardware"]}
    timed = {name: spec for name, spec in found.items() if spec.tables and "/" not in spec.tables}
    return {name: timed[name] for name in those(names, timed)}


def check_names(names: Sequence[str], *known: Iterable[str]) -> None:
    """InputError for a name that is in none of the lists."""
    choices = tuple(name for group in known for name in group)
    for name in names:
        if name not in choices:
            raise InputError("", name, "no such model, device with tables or kernels", nearest(name, choices)[:5])


def coverage(names: Sequence[str] = ()) -> Coverage:
    """Composes a deployment for each cell; ``names`` of models, devices and kernels choose among them."""
    models = groups()["model"]
    check_names(names, models, timed_hardware(), ENGINES)
    perf = build(Measured, sheet("perf", "measured"))
    cells = []
    for device, hardware in timed_hardware(names).items():
        for kernels in those(names, ENGINES):
            engine = build(EngineProfile, sheet("engine", ENGINES[kernels]))
            for spec, weights, degree in _served(those(names, models), hardware):
                cell = Cell(spec.name, weights, device, kernels, degree)
                cells.append(_composed(cell, Replica(spec, hardware, degree, engine), perf))
    return Coverage(cells)


def those(names: Sequence[str], known: Iterable[str]) -> list[str]:
    """Those named, or all of them."""
    return [name for name in known if name in names] or list(known)


def _served(models: Iterable[str], hardware: HardwareSpec) -> Iterator[tuple[ModelSpec, str, int]]:
    """Models as published and quantised, and on how many devices; none that MOST do not hold."""
    for name in models:
        data = sheet("model", name)
        published = str(data.get("weight_dtype", "bf16"))
        narrower = [dtype for dtype in QUANTISED if published == "bf16" and dtype in hardware.peaks]
        for dtype in (published, *narrower):
            spec = build(ModelSpec, data | {"weight_dtype": dtype})
            degree = next((n for n in (1, 2, 4, MOST) if spec.weight_bytes / n <= WEIGHTS * hardware.memory), 0)
            if degree:
                yield spec, dtype, degree


def _composed(cell: Cell, replica: Replica, perf: Measured) -> Cell:
    try:
        found = operators(perf.asked(replica))
    except InputError as error:
        return replace(cell, refused=error.why)
    return replace(cell, transferred=tuple(_transferred(found)))


def _transferred(found: Operators) -> Iterator[str]:
    for name, curve in (found.local | found.group | found.head).items():
        if curve.source == "transferred":
            yield name
    if any("transferred" in (layers.prompt.source, layers.decode.source) for layers in found.attention):
        yield "latent attention"
