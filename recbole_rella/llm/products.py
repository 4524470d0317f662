"""Linear layers and attention in float32 on a CPU, by oneDNN where it is faster than what PyTorch calls by itself, and as exact.

That is MKL, which leaves half of the vector units of other makers' CPUs idle. oneDNN is asked by the setting that lets it round to
bfloat16: CPUs that would do so (AMX) are found by trying, and keep what they have, which is fast there. The setting holds within
linear layers, and within the forward pass of attention where it multiplies large matrices.
"""

import threading
import time
from contextlib import contextmanager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# Fewer rows, or smaller matrices, are no work: calling it costs as much. Attention multiplies in small pieces.
_ROWS, _WEIGHTS, _QUERIES = 32, 64 * 64, 10_000

# How many times as fast it must be, at most how many times as far from the product in float64, over so many trials of such a size.
_GAIN, _ERROR, _TRIALS, _SIZE = 1.25, 4.0, 15, 384

_LOCK = threading.Lock()
_within, _before = 0, None


def _setting():
    """Where PyTorch says how CPUs multiply float32; None in versions before 2.9."""
    return getattr(torch.backends.mkldnn, "matmul", None) if torch.backends.mkldnn.is_available() else None


@contextmanager
def _by_onednn():
    """Context in which oneDNN multiplies. Of threads that are in it together the last one leaves the setting as it was."""
    global _within, _before
    setting = _setting()
    with _LOCK:
        if _within == 0:
            _before, setting.fp32_precision = setting.fp32_precision, "bf16"
        _within += 1
    try:
        yield
    finally:
        with _LOCK:
            _within -= 1
            if _within == 0:
                setting.fp32_precision = _before


class _Linear(torch.autograd.Function):
    """``F.linear`` by oneDNN, and its gradients."""

    @staticmethod
    def forward(ctx, rows, weight, bias):
        ctx.save_for_backward(rows, weight)
        with _by_onednn():
            return F.linear(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        flat = gradient.flatten(0, -2)
        with _by_onednn():
            return (
                gradient @ weight if of_rows else None,
                flat.t() @ rows.flatten(0, -2) if of_weight else None,
                flat.sum(0) if of_bias else None,
            )


def _fits(rows, weight, bias=None):
    """Whether arguments of ``F.linear`` are plain tensors in float32 on a CPU, and large enough."""
    return (
        all(
            type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
            for tensor in (rows, weight, bias)
            if tensor is not None
        )
        and rows.dim() > 1
        and weight.numel() >= _WEIGHTS
        and rows.numel() >= _ROWS * rows.shape[-1]
    )


def _is_large(query):
    """Whether attention of queries [..., n, D] on a CPU multiplies matrices that are large enough."""
    return query.device.type == "cpu" and query.shape[-2] * query.shape[-1] >= _QUERIES


def _attention(query, key, value, attn_mask=None, **more):
    """``F.scaled_dot_product_attention`` in float32: CPUs multiply other matrices within it as slowly as by MKL."""
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    with _by_onednn():
        found = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=attn_mask, **more)
    return found.to(query.dtype)


class _ByOneDNN(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and not kwargs and _fits(*args):
            rows, weight, bias = (*args, None)[:3]
            return _Linear.apply(rows, weight, bias)
        if function is F.scaled_dot_product_attention and len(args) == 3 and _is_large(args[0]):
            return _attention(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _least_seconds(*products):
    """What each of some functions takes at best; they are called in turn, so that what else the machine does meets all."""
    seconds = [float("inf")] * len(products)
    for _ in range(_TRIALS):
        for place, multiply in enumerate(products):
            began = time.perf_counter()
            multiply()
            seconds[place] = min(seconds[place], time.perf_counter() - began)
    return seconds


def _matrices():
    return torch.randn(2, _SIZE, _SIZE, generator=torch.Generator().manual_seed(0))


@lru_cache
@torch.inference_mode()
def is_faster():
    """Whether oneDNN multiplies float32 matrices faster than PyTorch does by itself, and as exactly, by a trial of milliseconds.

    Each process tries it anew: where both are one library they are equal, and where they are not the gain is far above the limit.

    Returns:
        bool: False where PyTorch has no oneDNN, or no such setting.
    """
    if _setting() is None or _setting().fp32_precision not in ("none", "ieee"):  # the user's own choice stays
        return False
    rows, weight = _matrices()

    def by_onednn():
        with _by_onednn():
            return F.linear(rows, weight)

    def by_itself():
        return F.linear(rows, weight)

    exact = rows.double() @ weight.double().t()
    errors = [(multiply() - exact).abs().max() for multiply in (by_itself, by_onednn)]
    own, other = _least_seconds(by_itself, by_onednn)
    return own > _GAIN * other and bool(errors[1] <= _ERROR * errors[0])


@lru_cache
@torch.inference_mode()
def bfloat16_pays():
    """Whether the CPU multiplies bfloat16 matrices faster than float32 ones, however those are multiplied, by a like trial.

    Returns:
        bool: whether it does.
    """
    rows, weight = _matrices()
    half_rows, half_weight = rows.bfloat16(), weight.bfloat16()

    def in_float32():
        with fast_products():
            F.linear(rows, weight)

    single, half = _least_seconds(in_float32, lambda: F.linear(half_rows, half_weight))
    return single > _GAIN * half


def fast_products():
    """Context in which an LLM in float32 on a CPU is computed the faster way; gradients of its linear layers, too."""
    return _ByOneDNN() if is_faster() else nullcontext()
