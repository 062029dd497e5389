"""Products of an encoder layer on one core, as ONNX Runtime or torch computes them."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mist.errors import MistError

Floats = NDArray[np.float32]
Product = Callable[[Floats, Floats, bool], Callable[[], object]]  # of two operands, the second one of weights or not

TOKENS, TEXTS, LENGTH = 2048, 4, 512
HIDDEN = ((384, 12), (768, 12), (1024, 16))  # width and heads: the small, base and large BERT
FRESH = 2**24  # numbers of a tensor far beyond what an allocator keeps: 64 MiB
REPEATS = 12
NEEDS = {"torch": (("torch",), "profile-ops"), "onnx": (("onnx", "onnxruntime"), "profile-onnx")}


def library(engine: str) -> Any:
    """The module that computes; MistError, with the way to install it, where something is missing."""
    names, extra = NEEDS[engine]
    try:
        return [import_module(name) for name in names][-1]
    except ImportError:
        raise MistError(f"mist profile encoder needs {' and '.join(names)}: pip install 'mist-llm[{extra}]'") from None


def rates(product: Product) -> dict[str, float]:
    """Operations/s of one core, the mean over widths: ``matmul`` with weights, ``attention`` without."""
    matmul, attention = [], []
    for hidden, heads in HIDDEN:
        tokens, up = _random(TOKENS, hidden), _random(hidden, 4 * hidden)
        matmul.append(2 * TOKENS * hidden * 4 * hidden / best(product(tokens, up, True)))
        queries = _random(TEXTS, heads, LENGTH, hidden // heads)
        keys, scores = np.ascontiguousarray(queries.swapaxes(-1, -2)), _random(TEXTS, heads, LENGTH, LENGTH)
        seconds = best(product(queries, keys, False)) + best(product(scores, queries, False))
        attention.append(4 * TEXTS * LENGTH**2 * hidden / seconds)
    return {"matmul": float(np.mean(matmul)), "attention": float(np.mean(attention))}


def best(call: Callable[[], object]) -> float:
    """Seconds of processor of one call: the least of some, since others use the machine."""
    call()
    seconds = []
    for _ in range(REPEATS):
        began = process_time()
        call()
        seconds.append(process_time() - began)
    return min(seconds)


def torch_product(torch: Any) -> Product:
    """torch's, on one thread."""
    torch.set_num_threads(1)

    def made(left: Floats, right: Floats, weights: bool) -> Callable[[], object]:
        a, b = torch.from_numpy(left), torch.from_numpy(right)
        if weights:
            turned = b.t().contiguous()
            return lambda: torch.nn.functional.linear(a, turned)
        out = torch.matmul(a, b)
        return lambda: torch.matmul(a, b, out=out)

    return made


def fresh_rate(torch: Any) -> float:
    """Bytes/s that a core writes into memory new from the system, beyond what the writing itself takes."""
    numbers = torch.randn(FRESH)
    kept = torch.empty_like(numbers)
    again = best(lambda: torch.div(numbers, 5.0, out=kept))
    return float(4 * FRESH / max(best(lambda: numbers / 5.0) - again, 1e-9))


def onnx_product(runtime: Any, quantised: bool) -> Product:
    """ONNX Runtime's, on one thread; ``quantised`` weights are of 8 bits, and what they meet is converted each time."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3

    def made(left: Floats, right: Floats, weights: bool) -> Callable[[], object]:
        with TemporaryDirectory() as folder:
            path = _graph(Path(folder), left, right, weights, quantised and weights)
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given = {"left": left} if weights else {"left": left, "right": right}
        return lambda: session.run(None, given)

    return made


def _graph(folder: Path, left: Floats, right: Floats, weights: bool, quantised: bool) -> Path:
    onnx = import_module("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("left", kind, left.shape)]
    inputs += [] if weights else [helper.make_tensor_value_info("right", kind, right.shape)]
    known = [onnx.numpy_helper.from_array(right, "right")] if weights else []
    output = helper.make_tensor_value_info("product", kind, (*left.shape[:-1], right.shape[-1]))
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    model = helper.make_model(helper.make_graph([node], "product", inputs, [output], known), ir_version=10)
    model.opset_import[0].version = 17
    onnx.save(model, folder / "plain.onnx")
    if not quantised:
        return folder / "plain.onnx"
    import_module("onnxruntime.quantization").quantize_dynamic(
        folder / "plain.onnx", folder / "quantised.onnx", per_channel=True
    )
    return folder / "quantised.onnx"


def _random(*shape: int) -> Floats:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)
