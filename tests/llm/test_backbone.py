"""Real loading code on tiny checkpoints of several families: LoRA, save, load, dtype."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import FAMILIES, MIXTURES, write_llm, written_predictions
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig

from recbole_rella import load_data_and_model, run_recbole_rella
from recbole_rella.llm import backbone
from recbole_rella.llm.backbone import Backbone, LLMError, add_lora, automatic_dtype, load_adapter, save_adapter, with_adapter
from recbole_rella.llm.scoring import answer_logits, p_yes
from recbole_rella.llm.weights import lacking
from recbole_rella.serving.export import Export


def adapted(path, targets, **more):
    model = add_lora(Backbone(path, "cpu").model, more.pop("r", 4), 8, 0.0, targets, **more)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    return model.eval()


def exported_prompts(run):
    Export(run).write_prompts("prompts.jsonl")
    return [json.loads(line) for line in Path("prompts.jsonl").read_text().splitlines()]


def scores_of(llm, records):
    """P(yes) of exported prompts by a plain LLM, one after the other."""
    scores = []
    for record in records:
        answers = [record["answers"][answer]["token_id"] for answer in ("yes", "no")]
        with torch.no_grad():
            logits = llm(torch.tensor([record["prompt_token_ids"]])).logits[0, -1, answers]
        scores.append(torch.softmax(logits, -1)[0].item())
    return scores


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_adapters_load_into_plain_peft_and_into_ours(family, llms, tmp_path):
    targets = FAMILIES[family][-1]
    model = adapted(llms(family), targets)
    save_adapter(model, tmp_path)
    ids = torch.randint(5, 100, (2, 9))
    expected = model(input_ids=ids).logits
    base = AutoModelForCausalLM.from_pretrained(llms(family), dtype=torch.float32)
    assert not torch.allclose(base(input_ids=ids).logits, expected, atol=1e-3)
    plain = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(plain(input_ids=ids).logits, expected)
    ours = add_lora(Backbone(llms(family), "cpu").model, 4, 8, 0.0, targets).eval()
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(ours(input_ids=ids).logits, expected)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["r"] == 4 and settings["bias"] == "none" and settings["base_model_name_or_path"] == llms(family)


LORAS = [
    {"use_dora": True},
    {"use_rslora": True},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 16}},
    {"layers_to_transform": [1], "init_lora_weights": "gaussian"},
    {"exclude_modules": ["v_proj"], "init_lora_weights": "orthogonal"},
]


@pytest.mark.parametrize("more", LORAS, ids=lambda more: "+".join(more))
def test_other_arguments_of_lora(more, llms, tmp_path):
    """Scores as trees, with adapters merged or not, are those of plain PEFT, which loads what was saved (law 3)."""
    model = adapted(llms("llama"), ["q_proj", "v_proj"], more=more)
    save_adapter(model, tmp_path)
    ids = torch.randint(5, 100, (6, 20))
    ids[:, :15] = ids[0, :15]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llms("llama"), dtype=torch.float32), tmp_path).eval()
    with torch.no_grad():
        expected = torch.softmax(plain(input_ids=ids).logits[:, -1, [7, 3]], -1)[:, 0]
        unadapted = torch.softmax(Backbone(llms("llama"), "cpu").model(input_ids=ids).logits[:, -1, [7, 3]], -1)[:, 0]
    ours = add_lora(Backbone(llms("llama"), "cpu").model, 4, 8, 0.0, ["q_proj", "v_proj"], more=more).eval()
    assert all(".lora_" in name for name, parameter in ours.named_parameters() if parameter.requires_grad)
    load_adapter(ours, tmp_path)
    for llm in (model, ours):
        scores = p_yes(llm, ids, torch.full((6,), 20), (7, 3), 1000, "cpu")
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert (scores - unadapted).abs().max() > 1e-3
    # What was scored can be tuned.
    assert not any(weights.is_inference() for weights in ours.parameters())
    sum(logits.logsumexp(-1).sum() for _, logits in answer_logits(ours.train(), ids, torch.full((6,), 20), 1000)).backward()
    assert all(parameter.grad is not None for parameter in ours.parameters() if parameter.requires_grad)


def test_other_arguments_of_lora_that_leave_no_module(llms):
    with pytest.raises(LLMError, match=r"lora: expected arguments of LoraConfig that fit LlamaForCausalLM, found .'layers_to_t"):
        adapted(llms("llama"), ["q_proj"], more={"layers_to_transform": [70]})


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "falcon", None])
def test_all_linear_layers_but_the_head(family, llms):
    """As PEFT itself finds them; GPT-2's (None) are of a class of their own."""
    found = []
    for ours in (True, False):
        gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50)) if family is None else None
        llm = gpt2 or Backbone(llms(family), "cpu").model
        config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
        model = add_lora(llm, 4, 8, 0.0, ["all-linear"]) if ours else get_peft_model(llm, config)
        found.append({name for name, _ in model.named_parameters() if ".lora_A" in name})
    assert found[0] == found[1] and found[0]


def test_all_linear_layers_of_a_mixture_are_those_of_its_attention(llms):
    """Its experts hold their weights in no linear layer."""
    model = adapted(llms("qwen3-moe"), ["all-linear"])
    found = {name.rpartition(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert found == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_run_with_dora_on_all_linear_layers(movies, llms):
    """It scores as plain PEFT with what it saved."""
    name, tiny = movies
    own = {"llm": llms("llama"), "lora_target_modules": "all-linear", "lora": {"use_dora": True}}
    settings = {**tiny, **own, "learning_rate": 0.02, "train_shots": 40}
    result = run_recbole_rella("ReLLa", name, config_dict=settings)
    (run,) = Path("saved").iterdir()
    records = exported_prompts(run)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llms("llama"), dtype=torch.float32), run / "adapter")
    np.testing.assert_allclose(written_predictions(result)["score"], scores_of(plain.eval(), records), atol=1e-5)
    assert {"up_proj", "o_proj"} <= set(plain.peft_config["default"].target_modules) and plain.peft_config["default"].use_dora


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "falcon", "gpt-oss", "qwen3-moe"])
def test_a_run_that_retrieves_by_the_llm_scores_as_plain_peft(family, movies, llms):
    """Families of other attention modules than those of properties/llm, which tests/llm/test_families.py runs."""
    name, tiny = movies
    settings = {
        **tiny,
        "llm": llms(family),
        "lora_target_modules": {**FAMILIES, **MIXTURES}[family][-1],
        "retrieval_encoder": "llm",
    }
    result = run_recbole_rella("ReLLa", name, config_dict={**settings, "learning_rate": 0.02, "train_shots": 60})
    table = written_predictions(result)
    (run,) = Path("saved").iterdir()
    records = exported_prompts(run)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(llms(family), dtype=torch.float32), run / "adapter"
    ).eval()
    scores = scores_of(plain, records)
    assert np.ptp(scores) > 1e-3 and [record["row_id"] for record in records] == table["row_id"].tolist()
    np.testing.assert_allclose(table["score"], scores, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt-oss", "qwen3-moe"])
def test_mixtures_of_experts_run_from_end_to_end(family, movies, llms):
    """The scores that a run leaves are those of the plain LLM with the saved adapters."""
    name, tiny = movies
    settings = {**tiny, "llm": llms(family), "lora_target_modules": MIXTURES[family][-1], "learning_rate": 0.02, "train_shots": 16}
    run_recbole_rella("ReLLa", name, config_dict=settings)
    (run,) = Path("saved").glob("ReLLa-*")
    predictions = pd.read_csv(run / "test_predictions.csv", dtype={"score": np.float32})
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(llms(family), dtype=torch.float32), run / "adapter"
    ).eval()
    dataset = load_data_and_model(run)[2]
    rows = predictions["row_id"].to_numpy()
    ids, _ = dataset.assembly.prompter.token_ids(rows, dataset.rows.item[rows], np.full(len(rows), True))
    with torch.no_grad():
        logits = torch.stack([plain(input_ids=torch.tensor([i])).logits[0, -1, list(dataset.assembly.answer_ids)] for i in ids])
    np.testing.assert_allclose(torch.softmax(logits, -1)[:, 0], predictions["score"], atol=1e-5)
    assert np.ptp(predictions["score"]) > 1e-3


def test_an_adapter_that_does_not_fit(llms, tmp_path):
    save_adapter(adapted(llms("llama"), ["q_proj"]), tmp_path)
    with pytest.raises(LLMError, match="expected the adapters of this LLM and these lora_"):
        load_adapter(adapted(llms("llama"), ["v_proj"]), tmp_path)
    with pytest.raises(LLMError, match="Expected a saved adapter at .*, found none"):
        load_adapter(adapted(llms("llama"), ["v_proj"]), tmp_path / "nothing")
    with pytest.raises(
        LLMError, match=r"expected the adapters of this LLM and these lora_\* .* size mismatch for .* Set llm and lora_"
    ):
        load_adapter(adapted(llms("llama"), ["q_proj"], r=8), tmp_path)
    plain = Backbone(llms("llama"), "cpu").model
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    without(tmp_path / "adapter_model.safetensors", "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")
    with pytest.raises(LLMError, match=r"found others \(missing .*layers.1.self_attn.q_proj.lora_B"):
        with_adapter(plain, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:300])
    with pytest.raises(LLMError, match=f"Expected a saved adapter at {tmp_path}/.*, found a damaged file .* copy it again"):
        load_adapter(adapted(llms("llama"), ["q_proj"]), tmp_path)
    with pytest.raises(
        LLMError, match=f"Expected saved adapters of this LLM in {tmp_path}, found none that can be loaded .SafetensorE"
    ):
        with_adapter(Backbone(llms("llama"), "cpu").model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(whole)
    with_settings(tmp_path / "adapter_config.json", r=8)
    with pytest.raises(LLMError, match="found none that can be loaded .RuntimeError: .*size mismatch"):
        with_adapter(Backbone(llms("llama"), "cpu").model, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_the_answer_position_only(family, llms):
    """Equal to the plain logits, for all tokens and for two; the head goes back to what it was."""
    model = AutoModelForCausalLM.from_pretrained(llms(family)).eval()
    ids, lengths = torch.randint(5, 100, (3, 12)), torch.tensor([12, 5, 1])
    head = model.get_output_embeddings()
    seen = []
    handle = head.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape)))
    with torch.no_grad():
        plain = torch.stack([model(row[None, :n]).logits[0, -1] for row, n in zip(ids, lengths)])
        list(answer_logits(model, ids, lengths, 1000))  # the first call tries whether the LLM takes trees
        seen.clear()
        for tokens in (None, [7, 3]):
            ((places, logits),) = answer_logits(model, ids, lengths, 1000, tokens)
            expected = plain[places] if tokens is None else plain[places][:, tokens]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert seen == [(3, 1, plain.shape[1]), (3, 1, 2)]
    handle.remove()
    assert "forward" not in vars(head)


def test_soft_capped_logits_stay_capped(tmp_path):
    """What an LLM does to its logits after the head holds for two logits too."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=2.0,
    )
    model = Gemma2ForCausalLM(config).eval()
    ids = torch.randint(5, 80, (1, 6))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(200)
        plain = model(ids).logits[0, -1, [7, 3]]
        ((_, ours),) = answer_logits(model, ids, torch.tensor([6]), 1000, [7, 3])
    torch.testing.assert_close(ours[0], plain)
    assert plain.abs().max() <= 2


def test_gradient_checkpointing_gives_the_same_gradients(llms):
    gradients = []
    for checkpointing in (False, True):
        model = adapted(llms("llama"), ["q_proj", "v_proj"], gradient_checkpointing=checkpointing).train()
        assert model.get_base_model().is_gradient_checkpointing == checkpointing
        ids, lengths = torch.arange(5, 29).view(2, 12), torch.tensor([12, 7])
        sum(logits.logsumexp(-1).sum() for _, logits in answer_logits(model, ids, lengths, 1000)).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed)


def test_dtype(llms):
    assert Backbone(llms("llama"), "cpu").model.dtype == torch.float32
    half = Backbone(llms("llama"), "cpu", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    lora = [p for n, p in add_lora(half.model, 4, 8, 0.0, ["q_proj"]).named_parameters() if "lora_" in n]
    assert all(p.dtype == torch.float32 for p in lora)


@pytest.mark.parametrize("hardware_has_it", [True, False])
def test_bfloat16_only_where_the_hardware_has_it(hardware_has_it, llms, monkeypatch):
    """A T4 emulates it: PyTorch says that it is supported unless one asks for the hardware alone."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or hardware_has_it)
    assert automatic_dtype(torch.device("cuda")) == (torch.bfloat16 if hardware_has_it else torch.float32)
    assert Backbone(llms("llama"), "cuda").dtype == automatic_dtype(torch.device("cuda"))
    assert Backbone(llms("llama"), "cuda", dtype="float16").dtype == torch.float16
    assert automatic_dtype(torch.device("cpu")) == automatic_dtype(torch.device("mps")) == torch.float32


@pytest.mark.parametrize(
    ("stored", "pays", "expected"),
    [("bfloat16", 1, "bfloat16"), ("float16", 1, "bfloat16")] + [("bfloat16", 0, "float32"), ("float32", 1, "float32")],
)
def test_cpus_take_bfloat16_where_it_pays_and_loses_no_digit(stored, pays, expected, llms, tmp_path, monkeypatch):
    """By what the weights are stored in; an unpacked GGUF file had fewer digits than its folder says."""
    monkeypatch.setattr(backbone, "bfloat16_pays", lambda: bool(pays))
    AutoModelForCausalLM.from_pretrained(llms("llama"), dtype=getattr(torch, stored)).save_pretrained(tmp_path / "llm")
    assert Backbone(tmp_path / "llm", "cpu").dtype == getattr(torch, expected)
    assert Backbone(tmp_path / "llm", "cpu", dtype="float32").dtype == torch.float32
    monkeypatch.setattr(backbone, "origin", lambda _: "gguf")
    assert Backbone(tmp_path / "llm", "cpu").dtype == (torch.bfloat16 if pays else torch.float32)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementation_is_passed_through(attention, llms):
    assert Backbone(llms("llama"), "cpu", attn_implementation=attention).model.config._attn_implementation == attention


def test_identity_is_the_weights(tmp_path):
    first, second = (write_llm(tmp_path / name, "llama") for name in ("one", "two"))
    one, two = Backbone(first, "cpu").identity, Backbone(second, "cpu").identity
    assert one == two
    model = AutoModelForCausalLM.from_pretrained(second)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    model.save_pretrained(second)
    assert Backbone(second, "cpu").identity != one


def test_a_tokenizer_that_does_not_load_says_what_to_install(tmp_path):
    """As Vicuna's checkpoint has it: a file of sentencepiece, and no tokenizer.json."""
    LlamaConfig().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not one of sentencepiece either")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(LLMError, match="whose tokenizer cannot be loaded .* pip install sentencepiece protobuf"):
        Backbone(tmp_path, "cpu").tokenizer  # noqa: B018


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def point_to(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n")


def with_settings(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def without(path, *names):
    save_file({name: tensor for name, tensor in load_file(path).items() if name not in names}, path, metadata={"format": "pt"})


DAMAGES = {
    "cut weights": ("model.safetensors", cut, "weights cannot be loaded .SafetensorError.*git lfs pull"),
    "a pointer in their place": ("model.safetensors", point_to, "weights cannot be loaded .SafetensorError.*git lfs pull"),
    "another size": (
        "config.json",
        lambda path: with_settings(path, hidden_size=48),
        r"all weights of its config.json, found '.*' with lm_head.weight of \[465, 32\], not of \[465, 48\], .*and 18 more",
    ),
    "no heads": ("config.json", lambda path: with_settings(path, num_attention_heads=0), "configuration cannot be loaded .ZeroDiv"),
    "no head": (
        "model.safetensors",
        lambda path: without(path, "lm_head.weight"),
        "with no lm_head.weight. If it is one, its files",
    ),
    "more layers": (
        "config.json",
        lambda path: with_settings(path, num_hidden_layers=3),
        "with no model.layers.2.input_layer",
    ),
    "a cut tokenizer": ("tokenizer.json", cut, "tokenizer cannot be loaded"),
    "a cut configuration": ("config.json", cut, "configuration cannot be loaded .* download or save them again"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_llm_is_refused(damage, llms, tmp_path):
    """Rather than in a traceback of who reads its files, or as an LLM that is made up in part."""
    folder = shutil.copytree(llms("llama"), tmp_path / "llm")
    file, do, message = DAMAGES[damage]
    do(folder / file)
    with pytest.raises(LLMError, match=message):
        getattr(Backbone(folder, "cpu"), "tokenizer" if "tokenizer" in damage else "model")


def test_memory_that_is_too_small_is_no_fault_of_an_llm(llms, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        Backbone(llms("llama"), "cpu").model  # noqa: B018


def test_a_checkpoint_needs_neither_a_tied_head_nor_what_is_computed(llms):
    """Of tied weights there is one, and buffers are made."""
    assert "lm_head.weight" not in load_file(Path(llms("qwen2.5")) / "model.safetensors")
    model = Backbone(llms("qwen2.5"), "cpu").model
    buffers = {name for name, _ in model.named_buffers()}
    assert buffers and lacking(model, {"missing_keys": buffers, "mismatched_keys": set()}) == ""


COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def hub(tmp_path, monkeypatch, llms):
    """A cache of the hub as huggingface_hub lays it out, with one model in two versions."""
    root = tmp_path / "hub" / "models--org--tiny"
    for revision, commit in COMMITS.items():
        shutil.copytree(llms("llama"), root / "snapshots" / commit)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / revision).write_text(commit)
    changed = AutoModelForCausalLM.from_pretrained(root / "snapshots" / COMMITS["v2"])
    with torch.no_grad():
        changed.lm_head.weight.mul_(2)
    changed.save_pretrained(root / "snapshots" / COMMITS["v2"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    return root


def test_a_hub_model_is_its_commit(hub):
    main, v2 = Backbone("org/tiny", "cpu"), Backbone("org/tiny", "cpu", revision="v2")
    assert main.identity == f"org/tiny@{COMMITS['main']}" and v2.identity == f"org/tiny@{COMMITS['v2']}"
    assert Backbone("org/tiny", "cpu", revision=COMMITS["v2"]).identity == v2.identity
    ratio = v2.model.lm_head.weight / main.model.lm_head.weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2))
    # A branch that moves is another LLM; one that was asked for by commit stays.
    (hub / "refs" / "main").write_text(COMMITS["v2"])
    assert Backbone("org/tiny", "cpu").identity == v2.identity
    assert Backbone("org/tiny", "cpu", revision=COMMITS["main"]).identity == main.identity


def test_a_run_stays_with_the_commit_that_it_was_tuned_on(hub, movies):
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "llm": "org/tiny", "retrieval_encoder": "llm", "run_folder": "run"})
    config, model, dataset, *_ = load_data_and_model("run")
    before = model.llm.get_base_model().lm_head.weight.clone()
    (hub / "refs" / "main").write_text(COMMITS["v2"])  # another LLM under the same name
    config, model, dataset, *_ = load_data_and_model("run")
    assert config["llm_revision"] == COMMITS["main"] and torch.equal(model.llm.get_base_model().lm_head.weight, before)


def test_what_has_no_version_is_not_kept_for_other_runs(movies, llms, monkeypatch, caplog, own_cache):
    name, tiny = movies
    monkeypatch.setattr(Backbone, "folder", None)
    monkeypatch.setattr(Backbone, "commit", None)
    settings = {**tiny, "llm": llms("llama"), "retrieval_encoder": "llm", "epochs": 0, "run_folder": "run"}
    monkeypatch.setattr(Backbone, "_load", lambda self, loader, what, **more: loader.from_pretrained(self.path, **more))
    run_recbole_rella("ReLLa", name, config_dict=settings)
    assert "llm: no commit of" in caplog.text and "Set llm_revision to a commit, or give a folder" in caplog.text
    kept = {path.name.split("-")[0] for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("*.npz")}
    assert "item" not in kept and "prompts" not in kept


def test_the_head_has_adapters_where_it_is_a_layer_of_its_own(llms):
    """Merged into its weights, they give the scores of the LLM that was tuned."""
    model = adapted(llms("llama"), ["q_proj", "lm_head"])
    assert {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name} == {
        "q_proj",
        "lm_head",
    }
    ids, lengths = torch.randint(5, 100, (4, 9)), torch.tensor([9, 4, 7, 2])
    found = p_yes(model, ids.masked_fill(torch.arange(9) >= lengths[:, None], 0), lengths, (7, 9), 100, torch.device("cpu"))
    for row, length, score in zip(ids, lengths, found):
        with torch.no_grad():
            plain = model(input_ids=row[None, :length]).logits[0, -1, [7, 9]].softmax(-1)[0]
        torch.testing.assert_close(score, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets, why", [(["embed_tokens"], "is no linear layer"), (["lm_head", "q_proj"], "shares its weights")])
def test_what_could_not_be_merged_gets_no_adapters(targets, why, llms):
    """The input's embedding is the head of many an LLM."""
    with pytest.raises(LLMError, match=f"lora_target_modules: expected linear layers of .*, found .*{targets[0]}, which {why}"):
        add_lora(Backbone(llms("qwen2.5"), "cpu").model, 4, 8, 0.0, targets)
