"""What the tests share: atomic files, tiny LLMs with tokenizers of several kinds, and a tiny configuration."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    FalconConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

TEXTS = [
    "This person is 23 years old, a woman, a doctor.\nDoes this person like the last movie of the list? Yes means 4 or 5 stars, No means fewer.",
    "Comedy Story 1 (1990): Yes, 5 stars\nDrama Story 2 (1991): No, 1 star\nHorror Story 3 (1992): No, 2 stars\n",
    "The user watched Toy Story (1995) (4 stars). Answer: Yes or No? Yes\nNo\n",
    "user id: 17; age: 24\nitem id: 12; movie title: Toy Story; release year: 1995",
] * 20

_CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def _byte_level(chat=False):
    """Byte-level BPE, as GPT-NeoX, Falcon, Qwen and Llama 3 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    if chat:
        fast.chat_template = _CHAT
    return fast


def _sentence_piece_like():
    """BPE over text with the word mark, a dummy prefix and byte fallback, as Llama 2 and Mistral have it."""
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Trained on words, as sentencepiece does not merge across them; nothing is split at run time.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    words = [line for text in TEXTS for line in text.split("\n")]
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=900, special_tokens=[*special, *bytes_], show_progress=False)
    )
    tokenizer.pre_tokenizer = None
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
    "qwen2": (Qwen2Config, _GATED, lambda: _byte_level(chat=True), ["q_proj", "v_proj"]),
    "qwen3": (Qwen3Config, {**_GATED, "head_dim": 8}, lambda: _byte_level(chat=True), ["q_proj", "v_proj"]),
    "mistral": (MistralConfig, {**_GATED, "sliding_window": None}, _sentence_piece_like, ["q_proj", "v_proj"]),
    "gpt_neox": (
        GPTNeoXConfig,
        {**_SMALL, "intermediate_size": 64, "max_position_embeddings": 512},
        _byte_level,
        ["query_key_value"],
    ),
    "falcon": (FalconConfig, {**_SMALL, "alibi": False}, _byte_level, ["query_key_value"]),
}
TOKENIZERS = {
    "byte_level": _byte_level,
    "byte_level_chat": lambda: _byte_level(chat=True),
    "sentence_piece": _sentence_piece_like,
    "lines_joined": _lines_joined,
}


def write_llm(folder, family):
    """Save a tiny random checkpoint with a tokenizer of the family's kind, as a Hugging Face folder."""
    config_class, settings, make_tokenizer, _ = FAMILIES[family]
    tokenizer = make_tokenizer()
    config = config_class(**{**settings, "vocab_size": len(tokenizer)})
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
    "user_id": "token", "item_id": "token", "rating": "float", "label": "float", "timestamp": "float", "age": "token",
    "gender": "token", "occupation": "token", "movie_title": "token_seq", "release_year": "token", "class": "token_seq",
}  # fmt: skip


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
    "min_history": 2,
    "epochs": 1,
    "train_batch_size": 16,
    "prompt_noun": "movie",
    "prompt_verb": "watched",
    "prompt_profile": "This person is {{ user.age }} years old.",
    "prompt_item": "{{ item.movie_title }} ({{ item.release_year }})",
    "retrieval_sentence": "{{ item.movie_title }} is a {{ item['class'] }} movie.",
    "show_progress": False,
    "gpu_id": "",
    "use_gpu": False,
}
