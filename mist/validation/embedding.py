"""Embedding throughput against Infinity's benchmark page: tokens per second at saturation."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from yaml import safe_load

from mist.build import build
from mist.catalog import choice_file
from mist.hardware import HardwareSpec
from mist.model import Dtype, ModelSpec
from mist.perf.encoder import Encoder, EncoderEngine
from mist.validation.cells import Cell, frame, rows

SENTENCES, TOKENS = 256, 449  # one request: 256 sentences, 115,000 tokens (michaelfeil.eu/infinity, benchmarking)
CORES = 8  # of the CPU rows: GCP g2-standard-16 has 16 hardware threads, two to a core

# the page's words -> the names of sheets, and the weights' type where it is not the sheet's
HARDWARE = {"CPU Cascade Lake 16 vCPU": "cascade-lake", "L4": "l4", "MI210": "mi210"}
MODELS = {"bge-small-en-v1.5": "bge-small-en", "bge-large-en-v1.5": "bge-large-en"}
ENGINES: dict[str, tuple[str, Dtype | None]] = {
    "TEI candle flashbert": ("tei", None),
    "infinity torch compile fa2": ("infinity", None),
    "infinity torch": ("infinity", None),
    "tensorrt via infinity": ("tensorrt", None),
    "onnx-gpu fp16": ("onnx", None),
    "infinity-optimum onnx": ("onnx", "fp32"),
    "infinity-optimum-int8": ("onnx", "int8"),
    "sentence-transformers fp16": ("sentence_transformers", None),
    "sentence-transformers": ("sentence_transformers", "fp32"),
}
CALIBRATION = "L4"  # each engine's efficiency is solved from its one row there


def score(path: Path) -> pd.DataFrame:
    """Predicted beside measured tokens/s of every row of an Infinity benchmark table.

    Columns: set, slice, cell, measured, predicted, unit, split. A row of unknown hardware, model or engine has
    no prediction and the split *not modelled*.
    """
    cells = []
    for row in rows(pd.read_csv(path)):
        known = row["hardware"] in HARDWARE and row["model"] in MODELS and row["engine"] in ENGINES
        predicted = throughput(row["hardware"], row["model"], row["engine"]) if known else None
        split = "calibration" if row["hardware"] == CALIBRATION else "held-out"
        where = f"{row['hardware']}, {row['model']}, {row['engine']}"
        cells.append(Cell(row["hardware"], where, row["tokens_s"], predicted, "tokens/s", split))
    return frame("infinity_benchmark", cells)


def throughput(hardware: str, model: str, engine: str) -> float:
    """Tokens per second of one request after another, in the page's words."""
    name, dtype = ENGINES[engine]
    spec = build(HardwareSpec, sheet("hardware", HARDWARE[hardware]))
    if spec.kind == "cpu":
        spec = part(spec, CORES)
    encoder = Encoder(
        build(ModelSpec, sheet("model", MODELS[model])),
        spec,
        build(EncoderEngine, sheet("encoder", name)),
        TOKENS,
        dtype=dtype,
    )
    work = encoder.work(SENTENCES)
    shared = max(work.core_seconds / spec.cores, work.traffic / spec.memory_bandwidth) if spec.cores else 0.0
    return SENTENCES * TOKENS / (work.latency + shared)


def part(spec: HardwareSpec, cores: int) -> HardwareSpec:
    """A virtual machine of so many cores of a CPU, with their part of its peaks and bandwidth."""
    share = cores / spec.cores
    peaks = {dtype: peak * share for dtype, peak in spec.peaks.items()}
    return replace(spec, cores=cores, peaks=peaks, memory_bandwidth=spec.memory_bandwidth * share)


def sheet(group: str, name: str) -> dict[str, object]:
    """The data of one sheet."""
    data: dict[str, object] = safe_load(choice_file(group, name).read_text(encoding="utf-8"))
    return data
