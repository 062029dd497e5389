"""What was measured of a device as sheets: ``conf/hardware/<name>.yaml`` of MIST, ``<name>.yaml`` beside the tables."""

import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mist.errors import InputError

HEAD = "# Measured by mist profile ops"


@dataclass(frozen=True)
class Measured:
    """A device in figures: operations/s, bytes, bytes/s, W; None where nothing could be read."""

    name: str
    title: str
    version: str  # of torch
    gpu: bool
    vendor: str
    peaks: dict[str, tuple[float, str]]  # dtype -> operations/s, the shape that reached it
    memory: int
    memory_bandwidth: float
    host_bandwidth: float | None
    bus_bandwidth: float | None  # of all-reduce over all devices
    bus_latency: float | None  # s, the smallest all-reduce
    devices: int
    power: float | None
    idle_power: float | None
    cores: int | None = None  # of a CPU


def hardware_yaml(found: Measured, tables: Path) -> str:
    """A sheet for ``hardware=<name>`` with its operators in ``tables``; what could not be measured is left to be given,
    never guessed."""
    host = found.host_bandwidth or found.memory_bandwidth
    beside = found.bus_bandwidth or host
    sources = {
        "scale_up_bandwidth": f"all-reduce bus bandwidth over {found.devices} devices, largest message"
        if found.bus_bandwidth
        else "one device: that to the host; no all-reduce was measured",
        "scale_up_latency": "the smallest all-reduce" if found.bus_latency else "one device: nothing to measure",
        "host_bandwidth": "copy from pinned host memory" if found.host_bandwidth else "a CPU: its own memory",
    }
    lines = [
        f"{HEAD} on {found.title}, torch {found.version}: what kernels reached, not published peaks.",
        "# With perf=roofline they are no shares of a peak any more: perf.matmul_efficiency=1 "
        "perf.bandwidth_efficiency=1 perf.link_efficiency=1.",
        f"name: {found.name}",
        f"vendor: {found.vendor}",
        f"kind: {'gpu' if found.gpu else 'cpu'}",
        "peaks:",
        *(
            f"  {dtype}: {rate / 1e12:.4g} TFLOP/s # best matrix product, {at}"
            for dtype, (rate, at) in found.peaks.items()
        ),
        f"memory: {found.memory} B # total that the driver reports",
        f"memory_bandwidth: {found.memory_bandwidth / 1e9:.4g} GB/s # copy, read and written bytes",
        f"scale_up_bandwidth: {beside / 1e9:.4g} GB/s # {sources['scale_up_bandwidth']}",
        f"scale_up_latency: {(found.bus_latency or 0.0) * 1e6:.3g} us # {sources['scale_up_latency']}",
        f"scale_up_devices: {found.devices} # those of this machine",
        f"host_bandwidth: {host / 1e9:.4g} GB/s # {sources['host_bandwidth']}",
        *([f"cores: {found.cores} # as the system counts them"] if found.cores else []),
        _watts("power", found.power, "limit that the driver reports"),
        _watts(
            "idle_power",
            found.idle_power,
            "drawn before measuring, by the driver; this process was there, which adds some 30 to 70 W",
        ),
        f"tables: {tables.as_posix()} # of the operators timed here, for perf=measured",
    ]
    return "\n".join(lines) + "\n"


def system_yaml(found: Measured) -> str:
    """The sheet beside the tables, in the keys of aiconfigurator-core's systems/*.yaml."""
    peaks = {"bf16": "bfloat16_tc_flops", "fp8": "fp8_tc_flops"}
    lines = [f"{HEAD} on {found.title}, torch {found.version}", f"data_dir: data/{found.name}", "gpu:"]
    lines += [f"  mem_bw: {found.memory_bandwidth:.0f} # byte/s", f"  mem_capacity: {found.memory} # byte"]
    lines += [f"  {peaks[dtype]}: {rate:.0f} # FLOP/s" for dtype, (rate, _) in found.peaks.items()]
    lines += [f"  power: {found.power:.0f} # W"] if found.power else []
    lines += ["node:", f"  num_gpus_per_node: {found.devices}"]
    lines += [f"  intra_node_bw: {found.bus_bandwidth:.0f} # byte/s"] if found.bus_bandwidth else []
    lines += [f"  pcie_bw: {found.host_bandwidth:.0f} # byte/s"] if found.host_bandwidth else []
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Write a sheet, over one that was measured before but over no other."""
    if path.exists() and not path.read_text(encoding="utf-8").startswith(HEAD):
        raise InputError("--name", path.stem, f"{path} is a sheet that was not measured here; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def driver_watts(serial: str) -> tuple[float | None, float | None]:
    """Power limit and present draw of a GPU by nvidia-smi; of one that it does not know, None."""
    query = ["nvidia-smi", f"--id={serial}", "--query-gpu=power.limit,power.draw", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout
        limit, draw = (float(word) for word in answer.split(","))
        return limit, draw
    return None, None


def _watts(field: str, watts: float | None, source: str) -> str:
    if watts is None:
        return f"{field}: ??? # no driver told it: write it here, or give hardware.{field}=..."
    return f"{field}: {watts:.4g} W # {source}"
