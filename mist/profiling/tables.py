"""Tables of measured operators, laid out as those of aiconfigurator-core (systems/data), latencies in milliseconds.

``<out>/data/<system>/<family>/torch/<version>/<table>.parquet`` and ``<out>/<system>.yaml``: same folders, columns and
units, so that whatever reads the packaged tables reads these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mist.profiling.plan import Attention, Gemm, Shape

BACKEND = "torch"
FAMILIES = {
    "gemm_perf": "gemm",
    "context_attention_perf": "attention",
    "generation_attention_perf": "attention",
    "custom_allreduce_perf": "comm",
    "memory_perf": "memory",
}
KEYS = {  # the columns that tell rows of a table apart
    "gemm_perf": ("gemm_dtype", "m", "n", "k"),
    "context_attention_perf": ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim"),
    "generation_attention_perf": ("batch_size", "step", "num_heads", "num_key_value_heads", "head_dim"),
    "custom_allreduce_perf": ("num_gpus", "message_size"),
    "memory_perf": ("op_name", "message_size"),
}


@dataclass
class Tables:
    """Rows by table, those of earlier runs on the same device and torch included; ``save`` writes them."""

    folder: Path  # <out>/data/<system>
    version: str  # of torch
    device: str  # as its driver calls it
    rows: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for table, keys in KEYS.items():
            path = self.path(table)
            frame = pd.read_parquet(path) if path.is_file() else pd.DataFrame()
            known = [row for row in frame.to_dict("records") if row["device"] == self.device]
            self.rows[table] = {tuple(row[key] for key in keys): {str(k): v for k, v in row.items()} for row in known}

    def path(self, table: str) -> Path:
        return self.folder / FAMILIES[table] / BACKEND / self.version / f"{table}.parquet"

    def add(self, table: str, kernel: str, seconds: float, row: Mapping[str, Any]) -> None:
        whole = {
            "framework": BACKEND,
            "version": self.version,
            "device": self.device,
            "op_name": table.removesuffix("_perf").removeprefix("custom_").replace("allreduce", "all_reduce"),
            "kernel_source": kernel,
            **row,
            "latency": seconds * 1e3,
        }
        self.rows[table][tuple(whole[key] for key in KEYS[table])] = whole

    def save(self) -> None:
        """Write all tables, each in one move: whoever is interrupted keeps what was there."""
        for table, rows in self.rows.items():
            if rows:
                path = self.path(table)
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_suffix(".tmp")
                pd.DataFrame(list(rows.values())).sort_values(list(KEYS[table])).to_parquet(draft, index=False)
                draft.replace(path)

    def seconds(self, shape: Shape) -> float | None:
        """What is known of a shape."""
        table, row = described(shape)
        known = self.rows[table].get(tuple(row[key] for key in KEYS[table]))
        return None if known is None else float(known["latency"]) / 1e3


def described(shape: Shape) -> tuple[str, dict[str, Any]]:
    """The table of a shape, and its columns."""
    if isinstance(shape, Gemm):
        return "gemm_perf", {"gemm_dtype": shape.dtype, "m": shape.m, "n": shape.n, "k": shape.k}
    context = shape.phase == "context"
    return f"{shape.phase}_attention_perf", _attention(shape, context)


def _attention(shape: Attention, context: bool) -> dict[str, Any]:
    return {
        "batch_size": shape.batch,
        "isl": shape.length if context else 1,
        "num_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "beam_width": 1,
        "attn_dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
        "step": 0 if context else shape.length - 1,  # the cache is isl + step long, as in the packaged tables
        "window_size": 0,
    }
