"""``mist profile ops``: the operators of a transformer layer, measured on the user's own device.

Within its minutes: memory copies, matrix products, context and generation attention, all-reduce where there are
several devices. Coarse grids come first and every run goes on from the tables of the one before, so more minutes, or
another run, mean finer grids. Ctrl-C keeps what was measured.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mist.errors import InputError
from mist.profiling import allreduce, kernels, sheet
from mist.profiling.device import Device
from mist.profiling.place import writable
from mist.profiling.plan import LEVELS, Gemm, Shape, shapes
from mist.profiling.sheet import Measured
from mist.profiling.tables import Tables, described

SAVE = 10.0  # s between writes
LONGEST = 1 / 100  # of the minutes that one shape may take
PER_SHAPE = 5  # bursts and preparation of a shape, in calls of it

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    hardware: Path
    tables: Path
    measured: Measured
    rows: dict[str, int]  # by table
    known: int  # shapes that had been measured before
    too_long: int  # shapes beyond the time or memory of one
    unmeasured: int  # shapes that the minutes did not reach, or that torch cannot run here
    coarse: int  # those of them that belong to the first grids, without which no step time can be composed
    apart: str = ""  # why devices could not be summed over


def ops(  # noqa: PLR0917
    name: str, minutes: float, out: Path, device: Device, told: tuple[float | None, float | None], progress: Progress
) -> Outcome:
    """Measure, and write tables to ``out`` and the sheet to ./conf/hardware; ``told`` is power and idle power, W."""
    until = time.monotonic() + 60 * minutes
    name = name or _slug(device.title)
    read = sheet.driver_watts(device.serial) if device.gpu else (None, None)
    place = Path("conf/hardware") / f"{name}.yaml"
    if place.exists() and not place.read_text(encoding="utf-8").startswith(sheet.HEAD):
        raise InputError("--name", name, f"{place} is a sheet that was not measured here; choose another name")
    writable("--out", out)
    writable("conf/hardware", place.parent)
    tables = Tables(out / "data" / name, str(device.torch.__version__), device.title)
    session = _Session(device, tables, until, progress)
    try:
        session.memory()
        session.links()
        session.shapes(60 * minutes * LONGEST)
    finally:
        tables.save()
    found = _measured(name, minutes, device, session, (told[0] or read[0], told[1] or read[1]))
    sheet.write(place, sheet.hardware_yaml(found, tables.folder))
    sheet.write(out / f"{name}.yaml", sheet.system_yaml(found))
    rows = {table: len(rows) for table, rows in tables.rows.items()}
    return Outcome(
        place,
        tables.folder,
        found,
        rows,
        session.known,
        session.too_long,
        session.unmeasured,
        session.coarse,
        session.apart,
    )


class _Session:
    """Measuring until time is up."""

    def __init__(self, device: Device, tables: Tables, until: float, progress: Progress) -> None:
        self.device, self.tables, self.until, self.progress = device, tables, until, progress
        self.bandwidth, self.rate = 0.0, 0.0  # bytes/s; operations/s, the best so far
        self.host: float | None = None
        self.known = self.too_long = self.unmeasured = self.coarse = 0
        self.apart = ""

    def memory(self) -> None:
        moved, seconds = kernels.copy_bandwidth(self.device)
        self.bandwidth = moved / seconds
        self.tables.add("memory_perf", "copy_", seconds, {"message_size": moved, "op_name": "copy"})
        self.host = kernels.host_bandwidth(self.device)

    def links(self) -> None:
        devices = 2
        while devices <= self.device.count:
            try:
                rows = allreduce.allreduce(devices)
            except self.device.torch.multiprocessing.ProcessException as error:  # it must not cost all that follows
                self.apart = f"all-reduce over {devices} devices failed: {str(error).strip().splitlines()[-1]}"
                return
            for over, elements, seconds, graph in rows:
                row = {"allreduce_dtype": "bfloat16", "num_gpus": over, "message_size": elements, "backend": "torch"}
                self.tables.add("custom_allreduce_perf", "NCCL" if graph else "NCCL_eager", seconds, row)
            devices *= 2

    def shapes(self, longest: float) -> None:
        dtypes = ("bfloat16", "fp8") if kernels.multiplies_fp8(self.device) else ("bfloat16",)
        self._calibrate()
        saved = time.monotonic()
        for level in range(LEVELS):
            plan = list(_spread(list(shapes(level, dtypes))))
            for number, shape in enumerate(plan):
                if time.monotonic() > self.until:
                    self.unmeasured += len(plan) - number
                    break
                self.progress(f"grid {level + 1} of {LEVELS}", number, len(plan))
                self._shape_or_end(shape, longest)
                if time.monotonic() - saved > SAVE:
                    self.tables.save()
                    saved = time.monotonic()
            self.coarse = self.coarse if level else self.unmeasured

    def _shape_or_end(self, shape: Shape, longest: float) -> None:
        """Ctrl-C is as if time were up."""
        try:
            self._shape(shape, longest)
        except KeyboardInterrupt:
            self.until = 0.0
            self.unmeasured += 1

    def _calibrate(self) -> None:
        """A first idea of the device's speed, to know which shapes are out of reach."""
        shape = Gemm(1024, 1024, 1024, "bfloat16")
        made, _ = kernels.calls(self.device, shape, 1.0)
        self.rate = shape.flops / self.device.time(made)

    def _shape(self, shape: Shape, longest: float) -> None:
        if (before := self.tables.seconds(shape)) is not None:
            self.known += 1
            self.rate = max(self.rate, shape.flops / before)
            return
        expected = max(shape.flops / self.rate, shape.traffic / self.bandwidth)
        if PER_SHAPE * expected > longest or shape.traffic > self.device.room:
            self.too_long += 1
            return
        try:
            made, kernel = kernels.calls(self.device, shape, expected)
            seconds = self.device.time(made)
        except (RuntimeError, NotImplementedError, ValueError):  # no kernel for it, or no memory
            self.unmeasured += 1
            return
        self.rate = max(self.rate, shape.flops / seconds)
        table, row = described(shape)
        self.tables.add(table, kernel, seconds, row)


def _spread(plan: list[Shape]) -> Iterator[Shape]:
    """All kinds of operators in turn, so that whatever time there is goes to each."""
    kinds: dict[str, list[Shape]] = {}
    for shape in plan:
        kinds.setdefault(described(shape)[0], []).append(shape)
    pace = {kind: len(members) / len(plan) for kind, members in kinds.items()}
    done = dict.fromkeys(kinds, 0)
    for _ in plan:
        kind = min((k for k in kinds if done[k] < len(kinds[k])), key=lambda k: (done[k] + 1) / pace[k])
        yield kinds[kind][done[kind]]
        done[kind] += 1


def _measured(
    name: str, minutes: float, device: Device, session: _Session, watts: tuple[float | None, float | None]
) -> Measured:
    peaks: dict[str, tuple[float, str]] = {}
    for row in session.tables.rows["gemm_perf"].values():
        dtype = {"bfloat16": "bf16"}.get(row["gemm_dtype"], row["gemm_dtype"])
        rate = 2.0 * row["m"] * row["n"] * row["k"] / (row["latency"] / 1e3)
        if rate > peaks.get(dtype, (0.0, ""))[0]:
            peaks[dtype] = rate, f"{row['m']} x {row['n']} x {row['k']}"
    if "bf16" not in peaks:
        raise InputError("--minutes", f"{minutes:g}", "not one matrix product was measured in so little time")
    sums = [row for row in session.tables.rows["custom_allreduce_perf"].values() if row["num_gpus"] == device.count]
    return Measured(
        name=name,
        title=device.title,
        version=str(device.torch.__version__),
        gpu=device.gpu,
        vendor=_vendor(device),
        peaks=peaks,
        memory=device.memory,
        memory_bandwidth=session.bandwidth,
        host_bandwidth=session.host,
        bus_bandwidth=_bus(sums),
        bus_latency=min((row["latency"] / 1e3 for row in sums), default=None),
        devices=device.count,
        power=watts[0],
        idle_power=watts[1],
        cores=None if device.gpu else os.cpu_count(),
    )


def _bus(sums: list[dict[str, Any]]) -> float | None:
    """Of the largest all-reduce: 2 (p - 1) / p of the message over its time (nccl-tests, doc/PERFORMANCE.md)."""
    if not sums:
        return None
    row = max(sums, key=lambda row: row["message_size"])
    p = row["num_gpus"]
    return float(2 * (p - 1) / p * 2 * row["message_size"] / (row["latency"] / 1e3))


def _vendor(device: Device) -> str:
    if not device.gpu:
        return next((vendor for vendor in ("intel", "amd", "nvidia") if vendor in device.title.lower()), "cpu")
    return "amd" if device.amd else "nvidia"


def _slug(title: str) -> str:
    """ "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3" """
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("(r)", "").replace("(tm)", "")).strip("-")
