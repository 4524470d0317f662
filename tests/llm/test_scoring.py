"""Trees and padded batches give the scores and gradients of each prompt alone; which of them is taken, and when none can be."""

import logging
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import FAMILIES, MIXTURES
from peft import LoraConfig, get_peft_model
from sklearn.metrics import roc_auc_score
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    MambaConfig,
    MistralConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from recbole_rella.llm import scoring, tree_attention, trial
from recbole_rella.llm.backbone import add_lora
from recbole_rella.llm.scoring import answer_logits, answers_alone, forward_passes, merged, p_yes, pad, parts_at_answers

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
        trial._problems.clear()

    yield choose
    trial._problems.clear()


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
    "sliding window": (MistralConfig(**GATED, sliding_window=16), "pieces", None),
    "sliding window and soft capping": (
        Gemma2Config(**GATED, head_dim=8, attn_logit_softcapping=2.0, sliding_window=16),
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


@pytest.mark.parametrize("window", [2, 7, 16, 41, 79])
@pytest.mark.parametrize("config", [MistralConfig, Gemma3TextConfig])
def test_windows_slide_within_trees(config, window, take):
    """Every layer of Mistral, every other one of Gemma 3: the scores and the gradients of single prompts."""
    more = {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]} if config is Gemma3TextConfig else {}
    llm = random_llm(config(**GATED, **more, sliding_window=window)).double()
    take("pieces")
    prompts = prompts_of(90)
    assert way_of(llm, prompts) == "pieces" and max(map(len, prompts)) == 80
    torch.testing.assert_close(together(llm, prompts, 200).detach(), alone(llm, prompts).double(), atol=1e-5, rtol=1e-5)
    wider = random_llm(config(**GATED, **more, sliding_window=80)).double()
    assert not torch.allclose(together(llm, prompts).detach(), together(wider, prompts).detach(), atol=1e-3)
    trained = [p.requires_grad_() for name, p in llm.named_parameters() if "k_proj" in name or "q_proj" in name]
    answers = torch.tensor([YES, NO, YES, NO, NO, YES, YES, NO, YES])
    single = torch.stack([llm(torch.tensor([p])).logits[0, -1] for p in prompts])
    expected = torch.autograd.grad(F.cross_entropy(single, answers), trained)
    for ours, plain in zip(torch.autograd.grad(F.cross_entropy(together(llm, prompts, 200), answers), trained), expected):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-4)


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


def scored(llm, prompts, budget=10_000):
    return p_yes(llm, pad(prompts), torch.tensor([len(p) for p in prompts]), (YES, NO), budget, torch.device("cpu"))


@pytest.mark.parametrize("family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "gemma-2"))])
def test_scores_of_bfloat16_have_the_digits_of_float32(family, llms):
    """gemma-2 caps its logits behind the head."""
    llm = AutoModelForCausalLM.from_pretrained(llms(family), dtype=torch.float32).eval()
    random = np.random.default_rng(0)
    prompts = [random.integers(7, llm.config.vocab_size, size=random.integers(5, 25)).tolist() for _ in range(2000)]
    full = scored(llm, prompts).numpy()
    ours = scored(llm.to(torch.bfloat16), prompts).numpy()
    plain = torch.softmax(alone(llm, prompts, [YES, NO]), -1)[:, 0].numpy()
    # Two rows may be equal by chance; answers in bfloat16 are by the hundred.
    assert min(len(np.unique(ours)), len(np.unique(full))) > 1990 and len(np.unique(plain)) < 1700
    assert together(llm, prompts[:9]).dtype == torch.float32  # what the training loss is made of
    labels = random.random(2000) < full
    assert abs(roc_auc_score(labels, ours) - roc_auc_score(labels, full)) < 1e-3 and np.abs(ours - full).max() < 0.05
    # To the last digit: hidden states in bfloat16, their products with the two rows of the head in float32.
    with torch.no_grad():
        states = torch.stack([llm.base_model(torch.tensor([p])).last_hidden_state[0, -1] for p in prompts[:50]])
        logits = states.float() @ llm.get_output_embeddings().weight[[YES, NO]].float().T
        cap = getattr(llm.config, "final_logit_softcapping", None)
        logits = torch.tanh(logits / cap) * cap if cap else logits
    one_by_one = torch.cat([scored(llm, [prompt]) for prompt in prompts[:50]])
    torch.testing.assert_close(one_by_one, torch.softmax(logits, -1)[:, 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "merged", "with a bias", "two adapters", "without adapters", "tuned as a whole"])
def test_heads_with_adapters_give_float32_too(kind, llms):
    """Equal to the head as PEFT computes it; two rows of it are computed unless it is more than a linear layer with LoRA."""
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_pretrained(llms("llama"), dtype=torch.float32).requires_grad_(False)
    whole = ["lm_head"] if kind == "tuned as a whole" else None
    targets = ["q_proj"] if whole else ["q_proj", "lm_head"]
    config = LoraConfig(r=4, target_modules=targets, modules_to_save=whole, lora_bias=kind == "with a bias", task_type="CAUSAL_LM")
    if kind == "with a bias":
        for layer in [llm.lm_head, *(layer.self_attn.q_proj for layer in llm.model.layers)]:
            layer.bias = torch.nn.Parameter(torch.zeros(layer.out_features))
    llm = get_peft_model(llm, config).eval()
    if kind == "two adapters":
        llm.add_adapter("other", config)
        llm.base_model.set_adapter(["default", "other"])
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    if kind == "merged":
        llm.merge_adapter()
    prompts = prompts_of(llm.config.vocab_size)
    with llm.disable_adapter() if kind == "without adapters" else nullcontext():
        expected = alone(llm, prompts, [YES, NO])
        found = together(llm, prompts, tokens=[YES, NO]).detach()
        half = together(llm.to(torch.bfloat16), prompts, tokens=[YES, NO]).detach()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert half.dtype == torch.float32 and (half - half.bfloat16()).abs().max() > 0 or kind in ("tuned as a whole", "with a bias")


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("way", ["trees", "batches"])
@pytest.mark.parametrize("budget", [70, 10_000])
def test_law_3_for_mixtures_of_experts(family, way, budget, llms, monkeypatch, caplog):
    llm = AutoModelForCausalLM.from_pretrained(llms(family), dtype=torch.float32).eval().requires_grad_(False)
    monkeypatch.setattr(scoring, "_cost_of_trees", lambda *_: 1.0 if way == "batches" else 0.0)
    monkeypatch.setattr(scoring, "_cost_of_batches", lambda *_: 0.5)
    prompts = prompts_of(llm.config.vocab_size)
    taken = {"batches": None, "trees": "mask" if family == "gpt-oss" else "pieces"}
    with caplog.at_level(logging.WARNING):
        assert way_of(llm, prompts, budget) == taken[way]
        for _ in range(2):
            scores = scored(llm, prompts, budget)
    expected = torch.softmax(alone(llm, prompts, [YES, NO]), -1)[:, 0]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1
    # The last layer of gpt-oss gives its router's scores as well, and is left as it is; the log says so once.
    parts = parts_at_answers(llm)
    assert parts == (["head"] if family == "gpt-oss" else ["head", "last layer"])
    said = [record.message for record in caplog.records if record.name.startswith("recbole_rella")]
    assert len(said) == (family == "gpt-oss") and all("computes its last layer at all positions" in message for message in said)


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_of_experts_train(family, llms):
    """Gradients of adapters are those of single prompts, and they lower the loss."""
    llm = AutoModelForCausalLM.from_pretrained(llms(family), dtype=torch.float32).requires_grad_(False)
    llm = add_lora(llm, 4, 8, 0.0, MIXTURES[family][-1]).train()
    prompts, trained = prompts_of(llm.config.vocab_size), [p for p in llm.parameters() if p.requires_grad]
    answers = torch.tensor([YES, NO, YES, NO, NO, YES, YES, NO, YES])
    losses, optimizer = [], torch.optim.AdamW(trained, 0.02)
    for step in range(8):
        loss = F.cross_entropy(together(llm, prompts), answers)
        optimizer.zero_grad()
        loss.backward()
        if step == 1:  # adapters begin with zeros
            single = torch.stack([llm(torch.tensor([p])).logits[0, -1] for p in prompts])
            for ours, plain in zip(trained, torch.autograd.grad(F.cross_entropy(single, answers), trained)):
                torch.testing.assert_close(ours.grad, plain, atol=1e-3 * float(plain.abs().max()), rtol=1e-2)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


class AcrossPositions(torch.nn.Module):
    """Each position gets something of the one before it."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden):
        return self.mlp(hidden + hidden.roll(1, dims=1))


class ByName(AcrossPositions):
    """Called in a way that no layer calls it here."""

    def forward(self, hidden, *, scale=1.0):
        if hidden.shape[1] < 9:
            raise NotImplementedError("short\nand a page of code")
        return self.mlp(hidden)


class HeadOfAll(torch.nn.Linear):
    """Logits are relative to those of the whole text."""

    def forward(self, hidden):
        logits = super().forward(hidden)
        return logits - logits.cumsum(dim=1) / 10


@pytest.mark.parametrize(
    ("odd", "part", "said"),
    [
        (AcrossPositions, "last layer", "it gives other logits"),
        (ByName, "last layer", "short"),
        (HeadOfAll, "head", "it gives other logits"),
    ],
)
def test_llms_that_are_built_otherwise_are_scored_plainly(odd, part, said, llms, caplog):
    llm = AutoModelForCausalLM.from_pretrained(llms("llama"), dtype=torch.float32).eval()
    if odd is HeadOfAll:
        llm.lm_head.__class__ = odd
    else:
        llm.model.layers[-1].mlp = odd(llm.model.layers[-1].mlp)
    prompts = [prompt for prompt in prompts_of(llm.config.vocab_size) if len(prompt) > 9]
    with caplog.at_level(logging.WARNING):
        scores = scored(llm, prompts)
        scored(llm, prompts)
    torch.testing.assert_close(scores, torch.softmax(alone(llm, prompts, [YES, NO]), -1)[:, 0], atol=1e-5, rtol=0)
    (message,) = [record.message for record in caplog.records if f"computes its {part} at all positions" in record.message]
    assert said in message and "page" not in message and part not in parts_at_answers(llm)


def test_an_llm_is_tried_once_and_left_as_it_was(llms, monkeypatch):
    llm = AutoModelForCausalLM.from_pretrained(llms("llama"), dtype=torch.float32).train()
    calls, state = [], torch.get_rng_state()
    llm.register_forward_hook(lambda *_: calls.append(1))
    assert parts_at_answers(llm) == ["head", "last layer"] and len(calls) == 8
    assert parts_at_answers(llm) == ["head", "last layer"] and len(calls) == 8
    assert llm.training and all(module.training for module in llm.modules()) and torch.equal(state, torch.get_rng_state())
    assert all("forward" not in vars(module) for module in llm.modules())
    with answers_alone(llm, (torch.tensor([0]), torch.tensor([3]))) as of_answers:
        assert of_answers(llm(torch.tensor([[5, 6, 7, 8]])).logits).shape == (1, llm.config.vocab_size)


def bytes_of_masks(llm, prompts, monkeypatch, budget=16_384):
    """The most that a mask and the scores of attention take together, in bytes, and the tokens of the trees."""
    taken, tokens, right = [], [], tree_attention._mask

    def mask(llm, tree):
        made = right(llm, tree)
        tokens.append(len(tree))
        size, heads, layers = made.element_size(), llm.config.num_attention_heads, llm.config.num_hidden_layers
        scores = heads * (2 * size + 4) if llm.config._attn_implementation == "eager" else 0
        taken.append(made.numel() * (size + 3 + scores * (layers if torch.is_grad_enabled() else 1)))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(tree_attention, "_mask", mask)
        found = together(llm, prompts, budget)
    return taken, tokens, found.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("gradients", [False, True])
def test_trees_with_a_mask_take_no_more_memory_than_they_may(dtype, attention, gradients, llms, take, monkeypatch):
    llm = AutoModelForCausalLM.from_pretrained(llms("qwen2"), dtype=dtype, attn_implementation=attention).eval()
    take("mask")
    random = np.random.default_rng(0)
    prompts = [random.integers(5, llm.config.vocab_size, size=random.integers(10, 40)).tolist() for _ in range(60)]
    with torch.set_grad_enabled(gradients):
        _, (_, *at_once), expected = bytes_of_masks(llm, prompts, monkeypatch)
        assert len(at_once) == 1 and at_once[0] == len({tuple(p[:n]) for p in prompts for n in range(1, len(p) + 1)})
        bound = 100_000 if attention == "sdpa" else 1_000_000
        monkeypatch.setattr(tree_attention, "MASK_BYTES", bound)
        taken, tokens, found = bytes_of_masks(llm, prompts, monkeypatch)
        most = tree_attention.mask_tokens(llm)
    assert len(tokens) > 3 and max(taken) <= bound and most - 40 < max(tokens) <= most
    torch.testing.assert_close(
        found, expected, atol=1e-4 if dtype == torch.float32 else 0.2, rtol=1e-4 if dtype == torch.float32 else 0.1
    )


def test_a_mask_of_gemma_2_fits_its_bound():
    """2B: eight heads in plain PyTorch, bfloat16. With 16,384 tokens its mask alone would take half a gigabyte."""
    llm = random_llm(Gemma2Config(**{**GATED, "num_attention_heads": 8}, head_dim=8)).to(torch.bfloat16)
    llm.config._attn_implementation = "eager"
    with torch.no_grad():
        tokens = tree_attention.mask_tokens(llm)
    assert 3500 < tokens < 4500 and tokens**2 * (2 + 3 + 8 * 8) <= tree_attention.MASK_BYTES
    assert tree_attention.mask_tokens(llm) < tokens


def test_threads_take_turns(llms):
    """Attention, forward methods and merged adapters are those of one of them at a time."""
    llm = lora(llms).eval()
    random = np.random.default_rng(1)
    requests = [[random.integers(5, 80, size=random.integers(3, 30)).tolist() for _ in range(6)] for _ in range(8)]
    requests += [prompts_of(llm.config.vocab_size)] * 4
    expected = [scored(llm, request) for request in requests]
    found, interval = [None] * len(requests), sys.getswitchinterval()

    def work(mine):
        for place in mine:
            found[place] = scored(llm, requests[place])

    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(range(first, len(requests), 2),)) for first in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for ours, alone_ in zip(found, expected):
        torch.testing.assert_close(ours, alone_, atol=0, rtol=0)
    assert not any(module.merged for module in llm.modules() if isinstance(module, scoring.LoraLayer))
