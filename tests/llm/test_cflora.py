"""Gates: a batch of prompts under different ones is each prompt under adapters of its own, merged into a plain LLM."""

import copy

import numpy as np
import pytest
import torch
from helpers import FAMILIES
from transformers import AutoModelForCausalLM

from recbole_rella.llm.backbone import LLMError, add_lora, freeze_adapter
from recbole_rella.llm.cflora import GATES, GateError, Gates
from recbole_rella.llm.scoring import answer_logits, forward_passes, merged, p_yes, pad

SIZE, R = 5, 3


def with_gates(folder, targets, init="paper"):
    llm = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False).eval()
    torch.manual_seed(1)
    llm = add_lora(llm, R, 6, 0.0, targets).eval()
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(0, 0.3)
    return llm, Gates(llm, SIZE, init, torch.nn.Identity())


def prompts(n=8, users=3):
    """Prompts that begin alike, and a vector of the user of each."""
    random = np.random.default_rng(0)
    beginning = random.integers(0, 200, 10).tolist()
    ids = [[*beginning, *random.integers(0, 200, 2 + n % 3).tolist()] for n in range(n)]
    vectors = random.normal(size=(users, SIZE)).astype(np.float32)[np.arange(n) % users]
    return ids, torch.from_numpy(vectors), torch.tensor([len(i) for i in ids])


def merged_copy(llm, gates, vector):
    """A plain LLM whose weights are W0 + (alpha / r) B G^T A."""
    plain = copy.deepcopy(llm)
    for hooked in plain.modules():
        hooked._forward_hooks.clear()
        hooked._forward_pre_hooks.clear()
    with torch.no_grad():
        for name, module in plain.named_modules():
            if (key := name.replace(".", "/")) in gates.gates:
                matrix = gates.gates[key](vector[None])[0]
                module.lora_A["default"].weight.copy_(matrix.T @ module.lora_A["default"].weight)
    return plain.merge_and_unload()


TARGETS = {family: FAMILIES[family][3] for family in FAMILIES} | {"qwen3": ["q_proj", "o_proj", "gate_proj", "lm_head"]}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "falcon"])
def test_prompts_under_different_gates_are_those_of_merged_copies(family, llms, monkeypatch):
    llm, gates = with_gates(llms(family), TARGETS[family])
    ids, vectors, lengths = prompts()
    expected = []
    for prompt, vector in zip(ids, vectors):
        with torch.no_grad():
            logits = merged_copy(llm, gates, vector)(torch.tensor([prompt]), use_cache=False).logits[0, -1, [3, 4]]
        expected.append(torch.softmax(logits, dim=-1)[0].item())
    with gates.numbered(pad(ids), vectors) as numbered:
        for way, cost in (("trees", 0.0), ("batches", float("inf"))):
            monkeypatch.setattr("recbole_rella.llm.scoring._cost_of_trees", lambda *_, cost=cost: cost)
            passes, found = forward_passes(llm, numbered, lengths, 4096)
            assert (found is not None) == (way == "trees")
            # Those of one user share the ten tokens that they begin with; users share none.
            assert way == "batches" or sum(map(len, passes)) == int((lengths - 10).sum()) + 3 * 10
            scores = p_yes(llm, numbered, lengths, (3, 4), 4096, "cpu")
            np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(expected) > 1e-3


def test_gates_that_are_the_identity_change_nothing(llms):
    llm, gates = with_gates(llms("llama"), ["q_proj", "v_proj"], init="identity")
    ids, vectors, lengths = prompts()
    with gates.numbered(pad(ids), vectors) as numbered:
        found = p_yes(llm, numbered, lengths, (3, 4), 4096, "cpu")
        with merged(llm):  # leaves adapters under gates alone
            assert not any(getattr(module, "merged", False) for module in llm.modules())
    plain, _ = with_gates(llms("llama"), ["q_proj", "v_proj"])
    for module in plain.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    np.testing.assert_allclose(found, p_yes(plain, pad(ids), lengths, (3, 4), 4096, "cpu"), atol=1e-6)


def test_gradients_reach_every_gate(llms):
    """In trees as prompt by prompt; frozen adapters get none."""
    found = []
    for budget in (1, 4096):
        llm, gates = with_gates(llms("qwen2"), ["q_proj", "v_proj"])
        freeze_adapter(llm)
        ids, vectors, lengths = prompts()
        with gates.numbered(pad(ids), vectors) as numbered:
            for _, logits in answer_logits(llm, numbered, lengths, budget, [3, 4]):
                torch.softmax(logits, dim=-1)[:, 0].sum().backward()
        assert all(parameter.grad is None for parameter in llm.parameters())
        found.append({name: parameter.grad for name, parameter in gates.named_parameters()})
    for name, grad in found[0].items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(grad, found[1][name], atol=1e-5, rtol=1e-3)


def test_size_of_the_paper():
    """41,664 parameters at d = 256 and r = 8, as the released code has them."""
    from recbole_rella.llm.cflora import Gate

    assert sum(parameter.numel() for parameter in Gate(256, 8, "paper").parameters()) == 41_664


def test_what_gates_cannot_do(llms, tmp_path):
    llm, gates = with_gates(llms("llama"), ["q_proj"])
    with pytest.raises(GateError, match="within `Gates.numbered`"):
        llm(torch.tensor([[1, 2, 3]]))
    gates.save(tmp_path)
    again = with_gates(llms("llama"), ["q_proj"], init="identity")[1]
    again.load(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in gates.state_dict().items())
    with pytest.raises(GateError, match="expected the gates of these adapters"):
        with_gates(llms("llama"), ["q_proj", "v_proj"])[1].load(tmp_path)
    (tmp_path / GATES).write_bytes((tmp_path / GATES).read_bytes()[:300])
    with pytest.raises(GateError, match="found none that fit .* the file is damaged: copy it again, or tune again"):
        again.load(tmp_path)
    untuned = add_lora(AutoModelForCausalLM.from_pretrained(llms("llama")), R, 6, 0.0, ["q_proj"])
    with pytest.raises(LLMError, match="expected adapters that were tuned, found some whose B is 0"):
        freeze_adapter(untuned)
    with pytest.raises(GateError, match="found none in"):
        Gates(AutoModelForCausalLM.from_pretrained(llms("llama")), SIZE, "paper", torch.nn.Identity())
    again = add_lora(AutoModelForCausalLM.from_pretrained(llms("llama")), R, 6, 0.0, ["q_proj"], gradient_checkpointing=True)
    with pytest.raises(GateError, match="cflora: expected an LLM whose gradients are not checkpointed, found one that computes"):
        Gates(again, SIZE, "paper", torch.nn.Identity())
