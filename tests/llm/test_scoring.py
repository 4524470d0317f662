"""Trees and padded batches give the scores and gradients of each prompt alone; which of them is taken, and when none can be."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import FAMILIES
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, Gemma2Config, GPT2Config, MambaConfig, MistralConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from recbole_rella.llm import scoring, tree_attention
from recbole_rella.llm.backbone import add_lora
from recbole_rella.llm.scoring import answer_logits, forward_passes, merged, p_yes, pad

YES, NO = 11, 42


def prompts_of(vocabulary, alike=True):
    """Prompts that begin alike, some equal and some the beginning of others; or none of that."""
    random = np.random.default_rng(3)
    common = random.integers(5, vocabulary, size=60).tolist()
    shapes = [(40, 7), (40, 9), (55, 3), (0, 11), (60, 0), (60, 20), (60, 0), (30, 0), (55, 1)]
    return [
        (common[:n] if alike else []) + random.integers(5, vocabulary, size=m + (0 if alike else n)).tolist() for n, m in shapes
    ]


def alone(llm, prompts, tokens=slice(None)):
    with torch.no_grad():
        return torch.stack([llm(torch.tensor([p])).logits[0, -1, tokens].float() for p in prompts])


def together(llm, prompts, budget=10_000, tokens=None):
    lengths = torch.tensor([len(p) for p in prompts])
    places, logits = zip(*answer_logits(llm, pad(prompts), lengths, budget, tokens))
    return torch.cat(logits)[torch.argsort(torch.cat(places))]


def random_llm(config):
    torch.manual_seed(0)
    llm = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    with torch.no_grad():
        for parameter in llm.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return llm.eval()


def way_of(llm, prompts, budget=10_000):
    return forward_passes(llm, pad(prompts), torch.tensor([len(p) for p in prompts]), budget)[1]


@pytest.fixture
def take(monkeypatch):
    """Take trees or batches, whatever they cost."""

    def choose(way):
        monkeypatch.setattr(scoring, "_cost_of_trees", lambda *_: 1.0 if way == "batches" else 0.0)
        monkeypatch.setattr(scoring, "_cost_of_batches", lambda *_: 0.5)
        if way != "batches":
            monkeypatch.setattr(tree_attention, "_candidates", lambda _: [way])
        tree_attention._ways.clear()

    yield choose
    tree_attention._ways.clear()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["pieces", "flex", "mask", "batches"])
@pytest.mark.parametrize("budget", [1, 70, 10_000])
def test_law_3_for_every_way(family, way, budget, llms, take):
    llm = AutoModelForCausalLM.from_pretrained(llms(family), dtype=torch.float32).eval().requires_grad_(False)
    take(way)
    prompts = prompts_of(llm.config.vocab_size)
    expected = torch.softmax(alone(llm, prompts, [YES, NO]), -1)[:, 0].numpy()
    takes = None if way == "batches" or (family, way) in (("falcon", "pieces"), ("falcon", "flex")) else way
    assert way_of(llm, prompts, budget) == takes and np.ptp(expected) > 0.01
    implementation = llm.config._attn_implementation
    scores = p_yes(llm, pad(prompts), torch.tensor([len(p) for p in prompts]), (YES, NO), budget, torch.device("cpu"))
    assert scores.dtype == torch.float32 and not scores.is_inference()
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)
    assert llm.config._attn_implementation == implementation
    torch.testing.assert_close(together(llm, prompts, budget).detach(), alone(llm, prompts), atol=1e-4, rtol=1e-4)


def test_trees_are_taken_where_beginnings_are_shared(llms, monkeypatch):
    monkeypatch.setattr(scoring, "_CALL", 1e3)  # what a call costs beside layers as small as these
    llm = AutoModelForCausalLM.from_pretrained(llms("llama"), dtype=torch.float32).eval()
    assert way_of(llm, prompts_of(llm.config.vocab_size)) == "pieces"
    # Four prompts of one length, nothing shared: a batch without padding, and one call of attention.
    random = np.random.default_rng(0).integers(5, 90, size=(4, 30))
    assert way_of(llm, (random + np.arange(4)[:, None] * 100).tolist()) is None
    assert way_of(llm, random[:1].tolist()) is None


SHAPE = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}
OTHERS = {
    "sliding window": (
        MistralConfig(**GATED, sliding_window=16),
        None,
        "its layers see the last 16 tokens, and prompts have up to 80",
    ),
    "wide sliding window": (MistralConfig(**GATED, sliding_window=80), "pieces", None),
    "linear positions": (BloomConfig(**{**SHAPE, "n_layer": 2, "n_head": 4}), None, "gives other logits within a tree"),
    "linear positions, other": (FalconConfig(**SHAPE, alibi=True), None, "gives other logits within a tree"),
    "learned positions": (GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4), "pieces", None),
    "recurrent": (
        MambaConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, state_size=4),
        None,
        "no attention to the whole prompt",
    ),
    "soft capping": (Gemma2Config(**GATED, head_dim=8, attn_logit_softcapping=2.0, sliding_window=200), "mask", None),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_llms_that_take_no_trees_are_scored_without(kind, caplog, monkeypatch):
    config, way, said = OTHERS[kind]
    llm = random_llm(config)
    monkeypatch.setattr(scoring, "_CALL", 0.0)
    prompts = prompts_of(90)
    with caplog.at_level(logging.WARNING):
        assert way_of(llm, prompts) == way
        way_of(llm, prompts)
    texts = [record.message for record in caplog.records if "equal beginnings are not shared" in record.message]
    assert [said in text for text in texts] == ([True] if said else [])
    torch.testing.assert_close(together(llm, prompts).detach(), alone(llm, prompts), atol=1e-4, rtol=1e-4)


def lora(llms, family="llama", dtype=torch.float32):
    torch.manual_seed(5)
    llm = AutoModelForCausalLM.from_pretrained(llms(family), dtype=dtype).requires_grad_(False)
    llm = add_lora(llm, 4, 8, 0.0, FAMILIES[family][3])
    with torch.no_grad():  # as if it had been trained: new adapters change nothing
        for name, parameter in llm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return llm


@pytest.mark.parametrize("way", ["pieces", "flex", "mask"])
def test_gradients_are_those_of_single_prompts(way, llms, take, monkeypatch):
    """In float64 (Llama's norms would round to float32): only the order of sums may differ."""
    take(way)
    if way == "flex":  # PyTorch refuses its gradients on a CPU, though what it runs there has them
        monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    llm = lora(llms, "gpt_neox", torch.float64).double()
    prompts = prompts_of(llm.config.vocab_size)
    answers = torch.tensor([YES, NO, YES, NO, NO, YES, YES, NO, YES])
    assert way_of(llm.get_base_model(), prompts) == way
    trained = [p for p in llm.parameters() if p.requires_grad]

    def gradients(logits):
        return torch.autograd.grad(F.cross_entropy(logits, answers), trained)

    single = torch.stack([llm(torch.tensor([p])).logits[0, -1] for p in prompts])
    expected = gradients(single)
    for budget in (70, 10_000):
        logits = together(llm, prompts, budget)
        assert logits.dtype == torch.float64
        for ours, plain in zip(gradients(logits), expected):
            torch.testing.assert_close(ours, plain, atol=1e-12, rtol=1e-9)


def test_training_with_recomputed_layers_or_dropout_of_attention_takes_no_pieces(llms, monkeypatch):
    monkeypatch.setattr(scoring, "_CALL", 0.0)
    prompts = prompts_of(80)
    llm = random_llm(MistralConfig(**GATED, sliding_window=None, attention_dropout=0.1))
    assert way_of(llm, prompts) == "pieces"
    llm.train()
    assert way_of(llm, prompts) == "mask"
    with torch.no_grad():
        assert way_of(llm.eval(), prompts) == "pieces"
    llm = AutoModelForCausalLM.from_pretrained(llms("llama"), dtype=torch.float32).train()
    llm.gradient_checkpointing_enable()
    assert way_of(llm, prompts) == "mask"


def test_merged_adapters_leave_no_trace(llms):
    llm = lora(llms).eval()
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    prompts = prompts_of(llm.config.vocab_size)
    unmerged = together(llm, prompts).detach()
    weight = llm.get_base_model().model.layers[0].self_attn.q_proj.get_base_layer().weight
    with pytest.raises(KeyError), merged(llm):
        changed = (weight - before["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"]).abs().max()
        torch.testing.assert_close(together(llm, prompts).detach(), unmerged, atol=1e-5, rtol=1e-5)
        raise KeyError
    assert changed > 0.01
    assert all(torch.equal(value, before[name]) for name, value in llm.state_dict().items())
    assert not any(module.merged for module in llm.modules() if isinstance(module, scoring.LoraLayer))
    torch.testing.assert_close(together(llm, prompts).detach(), unmerged, atol=0, rtol=0)


def test_weights_that_would_be_rounded_are_not_merged(llms):
    llm = lora(llms, dtype=torch.bfloat16)
    with merged(llm):
        assert not any(module.merged for module in llm.modules() if isinstance(module, scoring.LoraLayer))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_the_last_layer_is_computed_at_answers_alone(family, llms, monkeypatch):
    monkeypatch.setattr(scoring, "_CALL", 0.0)
    llm = AutoModelForCausalLM.from_pretrained(llms(family), dtype=torch.float32).eval()
    prompts = prompts_of(llm.config.vocab_size)
    rows = []
    for layer in llm.get_decoder().layers:
        first = next(module for module in layer.mlp.modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_hook(lambda module, inputs, _: rows.append(inputs[0].shape[:-1].numel()))
    scores = p_yes(llm, pad(prompts), torch.tensor([len(p) for p in prompts]), (YES, NO), 10_000, torch.device("cpu"))
    assert (
        rows[-1] == len(set(map(tuple, prompts))) < rows[-2] == len({tuple(p[:n]) for p in prompts for n in range(1, len(p) + 1)})
    )
    assert all("forward" not in vars(module) for module in llm.modules()) and torch.isfinite(scores).all()
