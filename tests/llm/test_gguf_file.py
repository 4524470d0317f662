"""An LLM in a GGUF file: the weights, tokenizer and scores of the folder that it was made of; and files that cannot be read."""

import importlib.util
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.speed.engines import LlamaCpp
from recbole_rella import run_recbole_rella
from recbole_rella.llm import gguf_file
from recbole_rella.llm.backbone import Backbone
from recbole_rella.llm.gguf_file import GgufError, is_gguf, unpacked
from recbole_rella.serving.saved_scorer import ScorerError
from recbole_rella.serving.scorer import Scorer

reads = pytest.mark.skipif(not gguf_file._READS_FILES, reason="this version of transformers is refused")


def write_gguf(path, folder, quantization=None, left_out=()):
    """Write a Qwen2 checkpoint as llama.cpp's converter does: its own names of tensors and settings, a byte-level tokenizer."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, writer = model.config, gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    saved = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[: config.vocab_size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words)
    whole = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    kinds = {None: gguf.TokenType.NORMAL, True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    writer.add_token_types([kinds[whole.get(word)] for word in words])
    writer.add_token_merges([" ".join(pair) for pair in saved["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        kind = quantization if quantization is not None and values.ndim == 2 else gguf.GGMLQuantizationType.F32
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own in left_out:
            continue
        writer.add_tensor(own, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def made(llms, tmp_path):
    """A file, and the folder that it was made of."""
    folder = llms("qwen2")
    return write_gguf(tmp_path / "tiny.gguf", folder), folder


@reads
def test_the_weights_are_those_of_the_checkpoint_and_so_are_the_tokens(made, tmp_path):
    path, folder = made
    found, expected = Backbone(unpacked(path, tmp_path / "cache"), "cpu", "float32"), Backbone(folder, "cpu")
    ids = torch.randint(0, expected.vocabulary - 5, (3, 12))
    with torch.no_grad():
        torch.testing.assert_close(found.model(ids).logits, expected.model(ids).logits, atol=1e-6, rtol=1e-6)
    text = "The user watched Drama Story 3 (1994): 4 stars\nYes"
    assert found.tokenizer(text)["input_ids"] == expected.tokenizer(text)["input_ids"]
    talk = [{"role": "user", "content": "Hello"}]
    talks = [of.tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"] for of in (found, expected)]
    assert talks[0] == talks[1] and len(talks[0]) < 15  # the marks of the chat format are a token each


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="pip install llama-cpp-python builds llama.cpp")
def test_llama_cpp_reads_the_file_and_gives_the_same_scores(made):
    """Also where prompts share beginnings, or all of them, and where one is shorter than the one before."""
    path, folder = made
    llm, answers = AutoModelForCausalLM.from_pretrained(folder).eval(), (5, 7)
    ids = torch.randint(10, llm.config.vocab_size - 5, (4, 12), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [ids[0], ids[0], ids[0][:6] + ids[1], ids[0][:9], ids[2]]
    with torch.no_grad():
        logits = [llm(torch.tensor([prompt])).logits[0, -1, list(answers)] for prompt in prompts]
    found = LlamaCpp(str(path), answers).scores(prompts)
    assert np.ptp(found) > 1e-3
    np.testing.assert_allclose(found, torch.stack(logits).softmax(1)[:, 0], atol=3e-4)  # it keeps keys and values in float16


@reads
def test_quantized_weights_are_those_that_the_file_holds(llms, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", llms("qwen2"), gguf.GGMLQuantizationType.Q8_0)
    model = Backbone(unpacked(path, tmp_path / "cache"), "cpu", "float32").model
    held = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}
    layer = model.model.layers[0]
    for name, weight in (("blk.0.ffn_up", layer.mlp.up_proj), ("blk.0.attn_k", layer.self_attn.k_proj)):
        np.testing.assert_array_equal(weight.weight.numpy(), held[f"{name}.weight"])
    assert model.dtype == torch.float32


@reads
def test_it_is_unpacked_once_and_again_where_the_folder_is_damaged(made, tmp_path, monkeypatch):
    path, _ = made
    unpack, times = gguf_file._unpack, []
    monkeypatch.setattr(gguf_file, "_unpack", lambda *given: times.append(given) or unpack(*given))
    folder = unpacked(path, tmp_path / "cache")
    identity = Backbone(folder, "cpu").identity
    moved = Path(shutil.copy(path, tmp_path / "other name.GGUF"))
    assert is_gguf(moved) and unpacked(moved, tmp_path / "cache") == folder and len(times) == 1
    for damage in (lambda: (folder / "model.safetensors").write_bytes(b"cut"), lambda: (folder / "gguf.json").unlink()):
        damage()
        assert unpacked(path, tmp_path / "cache") == folder and Backbone(folder, "cpu").identity == identity
    assert len(times) == 3 and identity.startswith("gguf ")


@pytest.mark.slow
@reads
def test_a_run_with_it_gives_the_scores_of_the_checkpoint(made, movies):
    path, folder = made
    name, tiny = movies
    runs = [
        run_recbole_rella("ReLLa", name, config_dict={**tiny, "llm": str(llm), "llm_dtype": "float32", "run_folder": place})
        for llm, place in ((path, "file"), (folder, "folder"))
    ]
    assert runs[0]["test_result"]["auc"] == pytest.approx(runs[1]["test_result"]["auc"], abs=1e-6)
    request = {"history": [("101", 5, 1)], "candidates": ["102", "103"]}
    scores = [Scorer.load(place).score_many([request])["score"].to_numpy() for place in ("file", "folder")]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.slow
@reads
def test_a_saved_scorer_names_the_file_and_not_its_folder_in_the_cache(made, movies, tmp_path, monkeypatch):
    """On another machine, whose cache is empty."""
    path, _ = made
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "llm": str(path), "run_folder": "run"})
    request = {"history": [("101", 5, 1)], "candidates": ["102", "103"]}
    scorer = Scorer.load("run")
    scorer.save_pretrained("scorer")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    scores = [each.score_many([request])["score"].to_numpy() for each in (scorer, Scorer.from_pretrained("scorer"))]
    np.testing.assert_allclose(*scores, atol=1e-5)
    path.unlink()
    with pytest.raises(ScorerError, match=f"expected the GGUF file that this scorer was saved with at {path}, found none"):
        Scorer.from_pretrained("scorer")


@reads
def test_files_that_cannot_be_read(made, movies, llms, tmp_path, monkeypatch):
    path, _ = made
    name, tiny = movies
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(GgufError, match=r"expected a GGUF file, found .*page.gguf, which begins with b'<htm'"):
        unpacked(tmp_path / "page.gguf", tmp_path / "cache")
    (tmp_path / "half.gguf").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(GgufError, match="which cannot be loaded"):
        unpacked(tmp_path / "half.gguf", tmp_path / "cache")
    with pytest.raises(
        GgufError, match=r"all weights of its LLM, found .*less.gguf with no model.layers.0.self_attn.q_proj.weight. Downl"
    ):
        unpacked(write_gguf(tmp_path / "less.gguf", llms("qwen2"), left_out=["blk.0.attn_q.weight"]), tmp_path / "cache")
    with pytest.raises(GgufError, match=r"one of several parts \(big-00001-of-00002.gguf\)"):
        unpacked(tmp_path / "big-00001-of-00002.gguf", tmp_path / "cache")
    writer = gguf.GGUFWriter(tmp_path / "new.gguf", "mamba9000")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match="architecture that transformers reads.*new.gguf"):
        unpacked(tmp_path / "new.gguf", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("gguf-*[!k]"))
    with pytest.raises(ValueError, match=r"llm: expected .* or a GGUF file \(this file does not exist\), found 'nowhere.gguf'"):
        run_recbole_rella("ReLLa", name, config_dict={**tiny, "llm": "nowhere.gguf"})
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GgufError, match=r"pip install 'recbole_rella\[gguf\]'"):
        unpacked(path, tmp_path / "cache")


def test_an_older_transformers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "_READS_FILES", False)
    with pytest.raises(GgufError, match="expected a version of transformers that reads tiny.gguf as it is"):
        unpacked(tmp_path / "tiny.gguf", tmp_path / "cache")
