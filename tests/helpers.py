"""What the tests share: atomic files, tiny LLMs with tokenizers of several kinds, and a tiny configuration."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.config import Config
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error, roc_auc_score
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaTokenizer,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    LlamaTokenizer,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from recbole_rella.prompt.template import PromptTemplate

TEXTS = [
    "This person is 23 years old, a woman, a doctor.\n"
    "Does this person like the last movie of the list? Yes means 4 or 5 stars, No means fewer.",
    "Comedy Story 1 (1990): Yes, 5 stars\nDrama Story 2 (1991): No, 1 star\nHorror Story 3 (1992): No, 2 stars\n",
    "The user watched Toy Story (1995) (4 stars). Answer: Yes or No? Yes\nNo\n",
    "user id: 17; age: 24\nitem id: 12; movie title: Toy Story; release year: 1995",
] * 20

_CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


# As Qwen3's: with thinking off, an empty thought stands before the answer.
_CHAT_WITH_THOUGHT = _CHAT.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As SmolLM3's: the day it is, whether one asks or not.
_CHAT_WITH_DATE = "<|system|>\nToday Date: {{ strftime_now('%d %B %Y') }}<|end|>\n" + _CHAT_WITH_THOUGHT
# As Llama 3.2's: a start token, the day it is unless one says otherwise, texts without white space around them.
_CHAT_LLAMA_3 = (
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0].role == 'system' %}{% set system, rest = messages[0].content | trim, messages[1:] %}"
    "{% else %}{% set system, rest = '', messages %}{% endif %}"
    "<|start|>system<|stop|>\n\nToday Date: {{ date_string }}\n\n{{ system }}<|end|>"
    "{% for m in rest %}<|start|>{{ m.role }}<|stop|>\n\n{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
_CHAT_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# As Mistral's: the system text before the last of the user's.
_CHAT_MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system, rest = messages[0].content + '\n\n', messages[1:] %}"
    "{% else %}{% set system, rest = '', messages %}{% endif %}"
    "{% for m in rest %}[INST] {% if loop.last %}{{ system }}{% endif %}{{ m.content }}[/INST]{% endfor %}"
)
_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(chat_template=None):
    """Byte-level BPE, as GPT-NeoX, Falcon, Qwen and Phi-4 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=chat_template
    )


def _tiktoken_like():
    """Byte-level BPE over the words of a regular expression, known words whole, a start token, as Llama 3 has it."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_LLAMA_3_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|start|>", "<|stop|>"]
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    start = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", chat_template=_CHAT_LLAMA_3
    )


def _sentence_piece(special, prefix):
    """BPE over text with the word mark and byte fallback."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    # Trained on words, as sentencepiece does not merge across them; nothing is split at run time.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    words = [line for text in TEXTS for line in text.split("\n")]
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=900, special_tokens=[*special, *bytes_], show_progress=False)
    )
    tokenizer.pre_tokenizer = None
    return tokenizer


def _vocabulary(tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _llama_2(chat_template=None, special=()):
    """A dummy prefix at the beginning of a text alone, as transformers makes Llama 2's, Vicuna's and Mistral's."""
    tokenizer = _sentence_piece(["<unk>", "<s>", "</s>", *special], [normalizers.Prepend("▁")])
    return LlamaTokenizer(
        **_vocabulary(tokenizer), chat_template=chat_template, extra_special_tokens=list(special), add_bos_token=True
    )


def _gemma():
    """No dummy prefix, as Gemma has it."""
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = _sentence_piece(["<pad>", "<eos>", "<bos>", "<unk>", *turns], [])
    return GemmaTokenizer(**_vocabulary(tokenizer), chat_template=_CHAT_GEMMA, extra_special_tokens=turns)


def _sentence_piece_like():
    """A dummy prefix before every stretch of text, as older files of Llama 2 and Mistral have it."""
    tokenizer = _sentence_piece(["<unk>", "<s>", "</s>"], [normalizers.Prepend("▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _lines_joined():
    """A tokenizer with a token that spans a line break: every prompt has to be tokenized whole."""
    fast = _byte_level()
    fast.add_tokens([AddedToken("stars\nDrama", normalized=False)])
    return fast


_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 0}
_GATED = {**_SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512}
FAMILIES = {
    "llama": (LlamaConfig, _GATED, _sentence_piece_like, ["q_proj", "v_proj"]),
    "qwen2": (Qwen2Config, _GATED, lambda: _byte_level(_CHAT), ["q_proj", "v_proj"]),
    "qwen3": (Qwen3Config, {**_GATED, "head_dim": 8}, lambda: _byte_level(_CHAT), ["q_proj", "v_proj"]),
    "mistral": (MistralConfig, {**_GATED, "sliding_window": None}, _sentence_piece_like, ["q_proj", "v_proj"]),
    "gpt_neox": (
        GPTNeoXConfig,
        {**_SMALL, "intermediate_size": 64, "max_position_embeddings": 512},
        _byte_level,
        ["query_key_value"],
    ),
    "falcon": (FalconConfig, {**_SMALL, "alibi": False}, _byte_level, ["query_key_value"]),
}
_GEMMA_3 = {
    **_GATED,
    "head_dim": 8,
    "num_hidden_layers": 3,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
_PICTURES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28}
# The LLMs of properties/llm in small, by the name of the file: how each is built, and a tokenizer of its kind.
SHIPPED = {
    "vicuna-7b-v1.5": (LlamaConfig, {**_GATED, "num_key_value_heads": 4}, _llama_2),
    "vicuna-13b-v1.5": (LlamaConfig, {**_GATED, "num_key_value_heads": 4}, _sentence_piece_like),
    "llama-3": (LlamaConfig, {**_GATED, "tie_word_embeddings": True}, _tiktoken_like),
    "qwen2.5": (Qwen2Config, {**_GATED, "tie_word_embeddings": True}, lambda: _byte_level(_CHAT)),
    "qwen3": (Qwen3Config, {**_GATED, "head_dim": 16}, lambda: _byte_level(_CHAT_WITH_THOUGHT)),
    "mistral": (MistralConfig, {**_GATED, "sliding_window": None}, lambda: _llama_2(_CHAT_MISTRAL, ["[INST]", "[/INST]"])),
    "gemma-2": (Gemma2Config, {**_GATED, "head_dim": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, _gemma),
    "gemma-3": (Gemma3TextConfig, _GEMMA_3, _gemma),
    "gemma-3 with pictures": (
        Gemma3Config,
        {"text_config": _GEMMA_3, "vision_config": _PICTURES, "mm_tokens_per_image": 4},
        _gemma,
    ),
    "phi": (Phi3Config, {**_GATED, "sliding_window": 64, "pad_token_id": 0}, lambda: _byte_level(_CHAT)),
    "smollm2": (LlamaConfig, {**_GATED, "tie_word_embeddings": True}, lambda: _byte_level(_CHAT)),
    "smollm3": (SmolLM3Config, {**_GATED, "num_hidden_layers": 4, "pad_token_id": 0}, lambda: _byte_level(_CHAT_WITH_DATE)),
}
# Mixtures of experts; the last layer of gpt-oss gives more than hidden states.
_EXPERTS = {"num_experts_per_tok": 2, "pad_token_id": 0}
MIXTURES = {
    "gpt-oss": (
        GptOssConfig,
        {**_GATED, **_EXPERTS, "head_dim": 8, "num_local_experts": 4},
        lambda: _byte_level(_CHAT),
        ["q_proj", "v_proj"],
    ),
    "mixtral": (MixtralConfig, {**_GATED, **_EXPERTS, "num_local_experts": 4}, _sentence_piece_like, ["q_proj", "v_proj"]),
    "qwen3-moe": (
        Qwen3MoeConfig,
        {**_GATED, **_EXPERTS, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
        lambda: _byte_level(_CHAT),
        ["q_proj", "v_proj"],
    ),
    "olmoe": (OlmoeConfig, {**_GATED, **_EXPERTS, "num_experts": 4}, _byte_level, ["q_proj", "v_proj"]),
}
TOKENIZERS = {
    "byte_level": _byte_level,
    "byte_level_chat": lambda: _byte_level(_CHAT),
    "byte_level_thought": lambda: _byte_level(_CHAT_WITH_THOUGHT),
    "byte_level_date": lambda: _byte_level(_CHAT_WITH_DATE),
    "tiktoken": _tiktoken_like,
    "sentence_piece": _sentence_piece_like,
    "sentence_piece_first": _llama_2,
    "sentence_piece_chat": lambda: _llama_2(_CHAT_MISTRAL, ["[INST]", "[/INST]"]),
    "sentence_piece_no_prefix": _gemma,
    "lines_joined": _lines_joined,
}


def write_llm(folder, family):
    """Save a tiny random checkpoint with a tokenizer of the family's kind, as a Hugging Face folder."""
    config_class, settings, make_tokenizer, *_ = {**FAMILIES, **SHIPPED, **MIXTURES}[family]
    tokenizer = make_tokenizer()
    size = {"vocab_size": len(tokenizer)}
    settings = {**settings, **({"text_config": {**settings["text_config"], **size}} if "text_config" in settings else size)}
    config = config_class(**settings)
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[config_class](config)
    with torch.no_grad():  # the usual initialization is so small that all scores would be equal
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _atomic(path, rows, types):
    fields = [f for f in types if any(f in row for row in rows)]
    lines = ["\t".join(f"{f}:{types[f]}" for f in fields)]
    lines += ["\t".join(str(row.get(f, "")) for f in fields) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


TYPES = {
    "user_id": "token",
    "item_id": "token",
    "rating": "float",
    "label": "float",
    "timestamp": "float",
    "age": "token",
    "gender": "token",
    "occupation": "token",
    "movie_title": "token_seq",
    "release_year": "token",
    "class": "token_seq",
}


def write_atomic_files(root, name, rows, users=None, items=None):
    """Write RecBole's atomic files; returns (name, configuration that finds them and is fast)."""
    folder = Path(root) / name
    folder.mkdir(parents=True)
    _atomic(folder / f"{name}.inter", rows, TYPES)
    if users:
        _atomic(folder / f"{name}.user", users, TYPES)
    if items:
        _atomic(folder / f"{name}.item", items, TYPES)
    return name, {**TINY, "data_path": str(root)}


# Overrides that make a whole run take seconds.
TINY = {
    "threshold": {"rating": 4},
    "mini_hidden_size": 16,
    "mini_num_layers": 1,
    "mini_num_heads": 2,
    "mini_vocab_size": 600,
    "mini_epochs": 1,
    "mini_history_size": 6,
    "retrieval_encoder": "tfidf",
    "history_size": 4,
    "history_recent_size": 2,
    "min_history": 2,
    "epochs": 1,
    "train_batch_size": 16,
    "prompt_noun": "movie",
    "prompt_profile": "This person is {{ user.age }} years old.",
    "prompt_item": "{{ item.movie_title }} ({{ item.release_year }})",
    "retrieval_sentence": "{{ item.movie_title }} is a {{ item['class'] }} movie.",
    "beside": [],
    "with_bias": False,
    "show_progress": False,
    "gpu_id": "",
    "use_gpu": False,
}


class Vectors:
    """A conventional model that has learned a vector of each item and user."""

    def __init__(self, dataset, seed=0):
        random = np.random.default_rng(seed)
        self._items, self._users = random.normal(size=(dataset.item_num, 5)), random.normal(size=(dataset.user_num, 3))

    def item_vectors(self):
        return self._items

    def user_vectors(self):
        return self._users


def write_crm(name, settings, folder="crm"):
    """Write the run folder of a conventional model on the rows of a data set; returns the data set, built."""
    from recbole_rella.data.crm import write_vectors
    from recbole_rella.data.row_dataset import RowDataset
    from recbole_rella.files import write_yaml

    dataset = RowDataset(Config(model="ReLLa", dataset=name, config_dict=settings))
    dataset.build()
    write_yaml(f"{folder}/config.yaml", {"model": "FM", "dataset": name})
    write_vectors(Path(folder), Vectors(dataset), dataset)
    return dataset


def rewrite(settings, name, suffix, change):
    """Change the text of an atomic file."""
    path = Path(settings["data_path"]) / name / f"{name}.{suffix}"
    path.write_text(change(path.read_text()))


METRICS = {
    "auc": roc_auc_score,
    "logloss": log_loss,
    "mae": mean_absolute_error,
    "rmse": lambda label, score: mean_squared_error(label, score) ** 0.5,
    "accuracy": lambda label, score: accuracy_score(label, score > 0.5),
}


def written_predictions(result, folder="saved", decimals=4):
    """The test predictions of the one run in a folder, of which scikit-learn gives the metrics that the run returned.

    Args:
        result (dict): of `run_recbole_rella`, with metrics of `METRICS` and perhaps UAUC.
        folder (str or pathlib.Path): where runs are written.
        decimals (int): metric_decimal_place.

    Returns:
        pandas.DataFrame: a row of the test split each.
    """
    (path,) = Path(folder).glob("*/test_predictions.csv")
    table = pd.read_csv(path, dtype={"user_id": str, "item_id": str})
    found = {name: value for name, value in result["test_result"].items() if name != "uauc"}
    expected = {name: METRICS[name](table["label"], table["score"]) for name in found}
    assert found and found == pytest.approx(expected, abs=10**-decimals)
    return table


def bare_template(layout, title, rating="{{ rating }}", question="", noun="film"):
    """A template of a layout in which items have a title alone (callable: item id -> str), and users have no fields."""
    return PromptTemplate(
        layout=layout,
        profile="",
        item="{{ item.title }}",
        rating=rating,
        question=question,
        system="",
        noun=noun,
        answers=("Yes", "No"),
        user_fields=lambda user: {},
        item_fields=lambda item: {"title": title(item)},
    )
