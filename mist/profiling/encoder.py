"""``mist profile encoder``: what an engine reaches of this machine's peaks, as a sheet of conf/encoder."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

import yaml

from mist.build import build
from mist.catalog import choice_file
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.profiling import encoder_cells
from mist.profiling.place import refuse_foreign, writable
from mist.profiling.retrieval import processor_name

MARK = "# Measured: by mist profile encoder"
KEPT = {  # what no product of matrices tells
    "bandwidth_efficiency: 0.71": "Intel Memory Latency Checker, as many writes as reads: "
    "200.0 of 281.6 GB/s on two Cascade Lake sockets (github.com/gjbex/Code-optimization, pull request 13)",
    "call_time: 0 s": "not measured here: give yours",
    "pads: true": "a batch of a Hugging Face tokenizer, padding=True: to its longest text",
}
PASSES = {
    "onnx": "score_passes: 6 # product written, mask and softmax read and written each, read by the last product",
    "torch": "score_passes: 8 # product written, division, mask and softmax read and written each, read by the last "
    "product (transformers before 4.41); 0, without fresh_rate, where attention is fused",
}


def encoder(arguments: argparse.Namespace) -> int:
    """Measure, write the sheet and say where; 0."""
    name = arguments.name or f"{arguments.engine.replace('-', '_')}_cpu"
    path = Path(arguments.out) / f"{name}.yaml"
    spec = build(HardwareSpec, yaml.safe_load(choice_file("hardware", arguments.hardware).read_text(encoding="utf-8")))
    if spec.kind != "cpu" or not spec.cores:
        raise InputError("--hardware", arguments.hardware, "is no CPU whose sheet says its cores: one core is measured")
    writable("--out", path.parent)
    refuse_foreign("--name", path, MARK)
    path.write_text(as_yaml(name, arguments.engine, spec, *measured(arguments.engine)), encoding="utf-8")
    print(f"{path}: stations.encoder.engine={name}")
    return 0


def measured(engine: str) -> tuple[dict[str, float], str]:
    """Rates of one core by operator, and what they were measured with."""
    runtime = encoder_cells.library(engine.partition("-")[0])
    if engine == "torch":
        rates = encoder_cells.rates(encoder_cells.torch_product(runtime))
        rates["fresh"] = encoder_cells.fresh_rate(runtime)
    else:
        rates = encoder_cells.rates(encoder_cells.onnx_product(runtime, engine == "onnx-quantised"))
    day = datetime.now(UTC).date().isoformat()
    return rates, f"one core of {processor_name()}, {runtime.__name__} {runtime.__version__}, {day}"


def as_yaml(name: str, engine: str, spec: HardwareSpec, rates: dict[str, float], source: str) -> str:
    """The sheet; InputError where the core was faster than its sheet's peak, whose clock is then another."""
    quantised = engine == "onnx-quantised"
    lines = [f"# {engine.replace('-', ', ')} on a CPU.", f"{MARK} on {source}; peaks of {spec.name}.", f"name: {name}"]
    for field, dtype in (("matmul", "int8" if quantised else "fp32"), ("attention", "fp32")):
        share = rates[field] / (spec.peak(dtype) / spec.cores)
        told = f"{rates[field] / 1e9:.4g} of {spec.peak(dtype) / spec.cores / 1e9:.4g} GOP/s"
        if share > 1:
            why = (
                f"a core made {told} in {dtype}: its clock is above that of the sheet's peaks; write them for this one"
            )
            raise InputError("--hardware", spec.name, why)
        lines.append(f"{field}_efficiency: {share:.2f} # measured, {told} in {dtype}")
    lines += [f"{field} # {source}" for field, source in KEPT.items()]
    lines.append(PASSES[engine.partition("-")[0]])
    if "fresh" in rates:
        lines.append(f"fresh_rate: {rates['fresh'] / 1e9:.2g} GB/s # measured: large tensors are new memory every time")
    if quantised:
        lines.append("activations: fp32 # dynamic quantisation: only products with weights are of 8 bits")
    return "\n".join(lines) + "\n"
