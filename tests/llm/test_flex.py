"""FlexAttention over trees, on the CPU, where PyTorch runs it uncompiled: blocks, states, gradients, what happens without it."""

import logging

import numpy as np
import pytest
import torch
from test_scoring import GATED, SHAPE, alone, lora, prompts_of, random_llm, together, way_of
from transformers import AutoModelForCausalLM, LlamaConfig

from recbole_rella.llm import flex, scoring, tree_attention, trial
from recbole_rella.llm.packing import prompt_trees
from recbole_rella.llm.scoring import pad

flex_attention = pytest.importorskip("torch.nn.attention.flex_attention")


@pytest.fixture
def candidates(monkeypatch):
    """The ways that may suit, as on a GPU or as told; trees cost nothing."""
    monkeypatch.setattr(scoring, "_cost_of_trees", lambda *_: 0.0)

    def choose(*ways):
        monkeypatch.setattr(tree_attention, "_candidates", lambda _: list(ways))
        trial._problems.clear()

    yield choose
    trial._problems.clear()


@pytest.fixture
def backward_on_cpu(monkeypatch):
    """PyTorch refuses gradients of FlexAttention on a CPU, though what it runs there has them."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)


def tree_of(random, prompts, longest):
    """Random prompts of few tokens, which share much."""
    lengths = random.integers(1, longest, size=prompts)
    sequences = [(random.integers(2, size=n) * (random.random() < 0.1)).tolist() for n in lengths]
    (tree,) = prompt_trees(pad(sequences), torch.from_numpy(lengths), 10**6)
    return tree


@pytest.mark.parametrize("prompts, longest", [(1, 2), (1, 128), (3, 129), (20, 60), (30, 300), (5, 1000)])
def test_blocks_are_those_of_the_whole_mask(prompts, longest):
    tree = tree_of(np.random.default_rng(prompts), prompts, longest)
    mask, found = tree.mask("cpu"), flex.block_mask(tree, torch.device("cpu"))
    expected = flex_attention.create_block_mask(lambda b, h, q, k: mask[q, k], 1, None, len(tree), len(tree), device="cpu")
    assert found.shape == expected.shape and found.BLOCK_SIZE == expected.BLOCK_SIZE
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, places = (getattr(found, f"{name}_{part}") for part in ("num_blocks", "indices"))
        torch.testing.assert_close(counts, getattr(expected, f"{name}_num_blocks"))
        for row, count in enumerate(counts[0, 0].tolist()):
            torch.testing.assert_close(places[0, 0, row, :count], getattr(expected, f"{name}_indices")[0, 0, row, :count])
    everywhere = torch.arange(len(tree))
    torch.testing.assert_close(found.mask_mod(0, 0, everywhere[:, None], everywhere[None]), mask)
    assert flex.blocks(tree)[0].sum() == (expected.kv_num_blocks + expected.full_kv_num_blocks).sum()


def test_trees_of_all_lengths_share_their_kernels():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = torch.compile(flex_attention.flex_attention, dynamic=True, fullgraph=True, backend=counter)
    for seed, longest in enumerate([400, 150, 999, 640, 200, 700, 129, 256, 400, 500]):
        tree = tree_of(np.random.default_rng(seed), 3, longest)
        states = torch.randn(3, 1, 2, len(tree), 16)
        with torch.no_grad():
            compiled(*states, block_mask=flex.block_mask(tree, torch.device("cpu")), scale=0.3, enable_gqa=False)
    assert counter.frame_count <= 3  # trees of one block, of two and of more; PyTorch keeps eight


@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_states_and_gradients_are_those_of_pieces(key_heads, backward_on_cpu):
    """In float64: heads that share keys in threes and sixes, a size of heads that is no power of two."""
    random = np.random.default_rng(0)
    tree = tree_of(random, 9, 120)
    states = [torch.randn(1, heads, len(tree), 12, dtype=torch.float64, requires_grad=True) for heads in (6, key_heads, key_heads)]
    weights = torch.randn(1, len(tree), 6, 12, dtype=torch.float64)
    found = flex.attention(flex.block_mask(tree, torch.device("cpu")), *states, 0.3)
    expected = tree_attention._pieces_with_gradient(tree, *states, 0.3, None)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    for ours, plain in zip(*(torch.autograd.grad((out * weights).sum(), states) for out in (found, expected))):
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("heads, key_heads", [(4, 2), (6, 2), (4, 1)])
def test_a_llama_over_several_blocks(heads, key_heads, candidates):
    candidates("flex")
    shape = {
        **SHAPE,
        "hidden_size": 12 * heads,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": 48,
    }
    llm = random_llm(LlamaConfig(**shape)).requires_grad_(False)
    random = np.random.default_rng(0)
    common = random.integers(5, 90, size=200).tolist()
    prompts = [
        common[:n] + random.integers(5, 90, size=m).tolist()
        for n, m in [(200, 90), (200, 5), (130, 60), (0, 40), (200, 0), (64, 70)]
    ]
    assert way_of(llm, prompts) == "flex"
    ours, plain = (torch.softmax(logits, -1) for logits in (together(llm, prompts).detach(), alone(llm, prompts)))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    assert plain.std() > 1e-3


def failing(*_):
    raise RuntimeError("no kernel for this\nand a page of code")


@pytest.mark.parametrize("part", ["attention", "block_mask"])
def test_without_flex_attention_a_mask_is_taken_and_said(part, candidates, monkeypatch, caplog):
    monkeypatch.setattr(flex, part, failing)
    candidates("flex", "mask")
    llm, prompts = random_llm(LlamaConfig(**GATED)).requires_grad_(False), prompts_of(90)
    with caplog.at_level(logging.WARNING):
        assert way_of(llm, prompts) == way_of(llm, prompts) == "mask"
    (said,) = [record.message for record in caplog.records]
    assert "does not run with FlexAttention here (RuntimeError: no kernel for this)" in said and "page" not in said
    torch.testing.assert_close(together(llm, prompts).detach(), alone(llm, prompts), atol=1e-4, rtol=1e-4)


def test_a_backward_pass_that_does_not_run_is_found_before_training(llms, candidates, monkeypatch, caplog):
    """As on this CPU, where PyTorch refuses it."""
    candidates("flex", "mask")
    llm = lora(llms).train()
    prompts = prompts_of(llm.config.vocab_size)
    assert way_of(llm, prompts) == "mask" and "does not support backward on CPU" in caplog.text
    with torch.no_grad():
        assert way_of(llm, prompts) == "flex"
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    trial._problems.clear()
    assert way_of(llm, prompts) == "flex"
    # Gradients that are wrong are found, too.
    right = flex.attention
    monkeypatch.setattr(flex, "attention", lambda *a: right(*a).detach())
    trial._problems.clear()
    assert way_of(llm, prompts) == "mask"


def test_layers_that_are_computed_again_take_a_mask(llms, candidates, backward_on_cpu):
    candidates("flex", "mask")
    llm = AutoModelForCausalLM.from_pretrained(llms("llama"), dtype=torch.float32).train()
    prompts = prompts_of(llm.config.vocab_size)
    expected = torch.autograd.grad(
        torch.stack([llm(torch.tensor([p])).logits[0, -1] for p in prompts]).square().sum(), llm.parameters()
    )
    assert way_of(llm, prompts) == "flex"
    llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert way_of(llm, prompts) == "mask"
    found = torch.autograd.grad(together(llm, prompts).square().sum(), llm.parameters())
    for ours, plain in zip(found, expected):
        torch.testing.assert_close(ours, plain, atol=1e-4 * float(plain.abs().max()), rtol=1e-3)


def test_costs_count_the_blocks_that_are_computed(llms):
    llm = AutoModelForCausalLM.from_pretrained(llms("llama"))
    lengths = torch.full((4,), 256)
    ids = torch.arange(1, 5)[:, None].expand(4, 256)  # nothing is shared: below the diagonal of each prompt alone
    trees = prompt_trees(ids, lengths, 10_000)
    own = scoring._cost(llm, 1024, 4 * 3 * 128**2, 1)
    assert scoring._cost_of_trees(llm, trees, "flex") == own < scoring._cost_of_trees(llm, trees, "mask")
