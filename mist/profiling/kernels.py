"""The operators of a transformer layer as torch calls them on a device."""

from collections.abc import Sequence
from typing import Any

from mist.profiling.device import Call, Device
from mist.profiling.plan import Attention, Gemm, Shape

BFLOAT16 = 2  # bytes
FNUZ = "gfx94"  # AMD's MI300 family multiplies e4m3 of its own kind (fnuz), later ones that of OCP


def calls(device: Device, shape: Shape, seconds: float) -> tuple[Sequence[Call], str]:
    """Calls of one operator on operands of their own each, and the name of what they call.

    ``seconds`` is about how long one takes. Operands are random: products of zeros draw less power and run faster.
    """
    return _gemm(device, shape, seconds) if isinstance(shape, Gemm) else _attention(device, shape, seconds)


def multiplies_fp8(device: Device) -> bool:
    """Whether torch has an FP8 matrix product for the device."""
    try:
        made, _ = _gemm(device, Gemm(16, 64, 64, "fp8"), 1.0)
        made[0]()
    except (RuntimeError, AttributeError, NotImplementedError, ValueError):
        return False
    return bool(device.gpu)  # elsewhere it is emulated


def _gemm(device: Device, shape: Gemm, seconds: float) -> tuple[Sequence[Call], str]:
    torch, where = device.torch, device.where
    m, n, k = shape.m, shape.n, shape.k
    x = torch.randn(m, k, dtype=torch.bfloat16, device=where)
    weights = _copies(torch.randn(n, k, dtype=torch.bfloat16, device=where), device.copies(n * k * BFLOAT16, seconds))
    if shape.dtype == "bfloat16":
        linear = torch.nn.functional.linear
        return [lambda w=w: linear(x, w) for w in weights], "torch.nn.functional.linear"
    fp8 = _fp8(device)
    x8, narrow = x.to(fp8), [w.to(fp8) for w in weights]
    one = torch.ones((), dtype=torch.float32, device=where)
    # fast accumulation, as vLLM's CUTLASS kernels have it on Hopper (FP8FastAccum); elsewhere it is ignored
    how = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16, "use_fast_accum": True}
    return [lambda w=w: torch._scaled_mm(x8, w.t(), **how) for w in narrow], "torch._scaled_mm"


def _fp8(device: Device) -> Any:
    architecture = str(getattr(device.properties, "gcnArchName", "")) if device.gpu else ""
    return device.torch.float8_e4m3fnuz if architecture.startswith(FNUZ) else device.torch.float8_e4m3fn


def _attention(device: Device, shape: Attention, seconds: float) -> tuple[Sequence[Call], str]:
    torch, where = device.torch, device.where
    cache = 2 * shape.batch * shape.kv_heads * shape.length * shape.head_dim * BFLOAT16
    kv = (shape.batch, shape.kv_heads, shape.length, shape.head_dim)
    q = torch.randn(*_queries(shape), dtype=torch.bfloat16, device=where)
    number = device.copies(cache, seconds)
    keys, values = (_copies(torch.randn(*kv, dtype=torch.bfloat16, device=where), number) for _ in range(2))
    sdpa, context = torch.nn.functional.scaled_dot_product_attention, shape.phase == "context"
    how = {"is_causal": context, "enable_gqa": context and shape.kv_heads < shape.heads}
    return [lambda k=k, v=v: sdpa(q, k, v, **how) for k, v in zip(keys, values, strict=True)], "torch_sdpa"


def _queries(shape: Attention) -> tuple[int, int, int, int]:
    """Batch, heads, queries, head_dim.

    In generation the heads of a group stand in the place of its one query: nothing is masked, so they are queries over
    the same keys, which every kernel reads once. With ``enable_gqa`` some copy the cache for each head first.
    """
    if shape.phase == "context":
        return shape.batch, shape.heads, shape.length, shape.head_dim
    return shape.batch, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim


def _copies(operand: Any, number: int) -> list[Any]:
    return [operand, *(operand.clone() for _ in range(number - 1))]


def copy_bandwidth(device: Device) -> tuple[int, float]:
    """Bytes moved (read and written) by a copy far larger than any cache, and the seconds it takes."""
    size = int(min(max(16 * device.cache, 2**28), device.room / 4))
    source = device.torch.empty(size, dtype=device.torch.int8, device=device.where)
    source.zero_()
    target = device.torch.zeros_like(source)
    return 2 * size, device.time([lambda: target.copy_(source)])


def host_bandwidth(device: Device) -> float | None:
    """Bytes/s from pinned host memory to the device; None for a CPU, whose memory is the host's."""
    if not device.gpu:
        return None
    size, torch = 2**28, device.torch
    source = torch.empty(size, dtype=torch.int8, pin_memory=True)
    target = torch.empty(size, dtype=torch.int8, device=device.where)
    return size / device.time([lambda: target.copy_(source, non_blocking=True)])
