"""How CPUs multiply float32: as exactly as PyTorch by itself, and nothing is left of it afterwards."""

import itertools
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from recbole_rella.llm import products
from recbole_rella.llm.products import bfloat16_pays, fast_products, is_faster


@pytest.fixture(autouse=True)
def fresh():
    """Each test tries anew."""
    for tried in (is_faster, bfloat16_pays):
        tried.cache_clear()
    yield
    for tried in (is_faster, bfloat16_pays):
        tried.cache_clear()


setting = products._setting()
needs_setting = pytest.mark.skipif(setting is None, reason="PyTorch before 2.9, or without oneDNN")


@needs_setting
@pytest.mark.parametrize("shape", [(1, 8, 8), (33, 640, 64), (700, 128, 256)])
def test_products_and_gradients_are_exact(shape):
    """Within a few roundings of those in float64, as PyTorch's own."""
    n, width, out = shape
    generator = torch.Generator().manual_seed(1)
    rows, weight = torch.randn(n, width, generator=generator), torch.randn(out, width, generator=generator)

    def computed(rows, weight):
        rows, weight = rows.clone().requires_grad_(), weight.clone().requires_grad_()
        product = F.linear(rows, weight)
        (product**2).sum().backward()
        return product.detach(), rows.grad, weight.grad

    exact, plain = computed(rows.double(), weight.double()), computed(rows, weight)
    with fast_products():
        fast = computed(rows, weight)
    for one, own, other in zip(exact, plain, fast):
        bound = max(8 * (own - one).abs().max().item(), 1e-6 * one.abs().max().item())
        assert (other - one).abs().max() <= bound


@needs_setting
def test_attention_is_exact(monkeypatch):
    monkeypatch.setattr(products, "is_faster", lambda: True)
    generator = torch.Generator().manual_seed(1)
    for queries in (8, 300):  # too few, and enough
        query = torch.randn(1, 2, queries, 64, generator=generator)
        key, value = torch.randn(2, 1, 2, 400, 64, generator=generator)
        with fast_products():
            found = F.scaled_dot_product_attention(query, key, value)
        expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
        torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=0)


@needs_setting
def test_the_setting_holds_within_and_is_left_as_it_was(monkeypatch):
    """In linear layers and what goes back through them; however threads overlap, and after an error."""
    monkeypatch.setattr(products, "is_faster", lambda: True)
    before, seen, linear = setting.fp32_precision, [], F.linear
    monkeypatch.setattr(products, "F", SimpleNamespace(linear=None, scaled_dot_product_attention=None))
    products.F.linear = lambda *arguments: seen.append(setting.fp32_precision) or linear(*arguments)
    weight = torch.randn(64, 64, requires_grad=True)
    with products._ByOneDNN() as mode:
        mode.__torch_function__(products.F.linear, (), (torch.randn(40, 64), weight))
        mode.__torch_function__(products.F.linear, (), (torch.randn(4, 64), weight))  # too little work
    assert seen == ["bf16", before] and setting.fp32_precision == before

    inside, leave = threading.Event(), threading.Event()

    def other():
        with products._by_onednn():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with products._by_onednn():
        thread.start()
        assert inside.wait(30) and setting.fp32_precision == "bf16"
    assert setting.fp32_precision == "bf16"  # of the other thread
    leave.set()
    thread.join()
    assert setting.fp32_precision == before
    with pytest.raises(ZeroDivisionError), products._by_onednn():
        raise ZeroDivisionError
    assert setting.fp32_precision == before


@needs_setting
@pytest.mark.parametrize(("slow", "rounds", "taken"), [(True, False, True), (True, True, False), (False, False, False)])
def test_it_is_taken_where_it_is_faster_and_exact(slow, rounds, taken, monkeypatch):
    """Not where CPUs round to bfloat16, whatever they gain."""
    linear = F.linear

    def multiply(rows, weight):
        asked = setting.fp32_precision == "bf16"
        time.sleep(0.002 if slow and not asked else 0)
        product = linear(rows, weight)
        return product.bfloat16().float() if rounds and asked else product

    monkeypatch.setattr(F, "linear", multiply)
    if not slow:  # each product takes the same time
        monkeypatch.setattr(products, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    assert is_faster() == taken


@needs_setting
def test_what_a_user_has_set_stays():
    before, setting.fp32_precision = setting.fp32_precision, "tf32"
    try:
        assert not is_faster()
        with fast_products():
            assert setting.fp32_precision == "tf32"
    finally:
        setting.fp32_precision = before


def test_an_older_pytorch_multiplies_as_it_does(monkeypatch):
    monkeypatch.setattr(products, "_setting", lambda: None)
    assert not is_faster()
    with fast_products():
        torch.testing.assert_close(F.linear(torch.ones(40, 80), torch.ones(90, 80)), torch.full((40, 90), 80.0))


@pytest.mark.parametrize("gains", [True, False])
def test_bfloat16_pays_where_it_is_faster(gains, monkeypatch):
    """Whatever this machine does: nothing is multiplied here."""
    monkeypatch.setattr(products, "is_faster", lambda: False)
    monkeypatch.setattr(F, "linear", lambda rows, _: time.sleep(0.002 if gains == (rows.dtype == torch.float32) else 0))
    assert bfloat16_pays() == gains
