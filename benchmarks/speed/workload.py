"""What the benchmarks of scoring and training run on: real prompts of MovieLens-100K, random LLMs of several shapes."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recbole_rella.config import cache_folder
from recbole_rella.llm.gguf_file import is_gguf, unpacked
from recbole_rella.prompt.tokenization import PromptTokenizer
from recbole_rella.quick_start import load_data, make_config, no_command_line

# Hidden size, inner size, layers, heads; the parameters of the layers are in the name.
SHAPES = {
    "1M": (128, 352, 4, 4),
    "25M": (512, 1408, 8, 8),
    "110M": (768, 3072, 12, 12),
    "0.5B": (1152, 3072, 24, 16),
    "7B": (4096, 11008, 32, 32),
}
VOCABULARY = 32_000
TOP_N = 100

# What a chat LLM gets first, then the order of the paper's prompts: the user, the shown behaviours, the question.
_TEMPLATE = """{{ system }}
{{ profile }}
The user watched these movies, oldest first:
{% for behaviour in behaviours %}
{{ behaviour.text }}: {{ behaviour.rating }}

{% endfor %}
Will the user like {{ target.text }}, {{ yes }} or {{ no }}?
Answer:"""


@dataclass
class Workload:
    """Prompts as texts, and the LLM that scores them.

    Attributes:
        texts (list of str): n prompts.
        labels (numpy.ndarray): 0 or 1, int [n].
        llm (transformers.PreTrainedModel), tokenizer (PromptTokenizer), answers (tuple of int): what scores them.
        folder (pathlib.Path): the same LLM and tokenizer, saved.
    """

    texts: list
    labels: np.ndarray
    llm: LlamaForCausalLM
    tokenizer: PromptTokenizer
    answers: tuple
    folder: Path

    def ids(self):
        """Token ids of all prompts, list of lists of int."""
        return [self.tokenizer.ids(text) for text in self.texts]


class Prompts:
    """Texts of ml-100k's prompts for one history size.

    Args:
        history_size (int): K.
        folder (pathlib.Path): for the template and the caches.

    Attributes:
        settings (dict): of the run of ReLLa that has them.
        prompter (Prompter): of that run.
    """

    def __init__(self, history_size, folder):
        template = Path(folder) / "paper.jinja"
        template.write_text(_TEMPLATE, encoding="utf-8")
        self.settings = {
            "mini_epochs": 0,
            "cache_dir": str(folder),
            "history_size": history_size,
            "max_prompt_tokens": 4096,
            "prompt_template": str(template),
            "retrieval_encoder": "tfidf",
            "show_progress": False,
            "prompt_item": "{{ item.movie_title }} ({{ item.release_year }})",
            "train_shots": 1024,
            "eval_history": "retrieved",
        }
        logging.disable(logging.WARNING)
        with no_command_line():
            config = make_config("ReLLa", "ml-100k", config_dict=self.settings)
            self._train, _, self._test = (loader._dataset for loader in load_data(config)[1])
        logging.disable(logging.NOTSET)
        self.prompter = self._test.assembly.prompter

    def _texts(self, rows, targets, retrieved):
        shown = self.prompter.shown(rows, targets, retrieved)
        return [self.prompter.text(*case) for case in zip(rows, targets, shown)]

    def _with(self, rows, least):
        return rows[[len(self.prompter.histories.of(row)) >= least for row in rows]]

    def test_ids(self, least=0):
        """Row ids of the first evaluation batch, int [at most 4,096]: those of rows with that many earlier behaviours at least."""
        return self._with(self._test.inter_feat["row_id"].numpy()[:4096], least)

    def shot_ids(self, least=0):
        """Row ids of the training shots, int [at most 1,024], as `test_ids`."""
        return self._with(np.unique(self._train.inter_feat["row_id"].numpy()), least)

    def retrieved(self, rows):
        """The behaviours, as row ids, that rows show, list of int arrays of at most K."""
        return self.prompter.shown(rows, self.prompter.rows.item[rows], np.full(len(rows), True))

    def test_rows(self, count, retrieved, least=0):
        """Prompts of test rows, with their labels: those that users drawn at random have in the first 4,096.

        An evaluation batch has so many rows, and what its prompts share, they share with those of the same user. With `least`,
        rows with a shorter history are left out.
        """
        rows = self.test_ids(least)
        users = self.prompter.rows.user[rows]
        order = np.random.default_rng(0).permutation(np.unique(users))
        rows = np.concatenate([rows[users == user] for user in order])[:count]
        return self._texts(rows, self.prompter.rows.item[rows], np.full(len(rows), retrieved)), self.prompter.rows.label[rows]

    def candidates(self, users, retrieved):
        """Prompts of TOP_N candidates for each of some users with at least K behaviours."""
        random = np.random.default_rng(0)
        rows = self._test.inter_feat["row_id"].numpy()
        rows = self._with(rows, self.prompter.history_size)
        _, first = np.unique(self.prompter.rows.user[rows], return_index=True)
        rows = np.repeat(random.choice(rows[first], users, replace=False), TOP_N)
        targets = np.concatenate([1 + random.choice(self._test.item_num - 1, TOP_N, replace=False) for _ in range(users)])
        return self._texts(rows, targets, np.full(len(rows), retrieved)), np.zeros(len(rows), dtype=int)

    def shots(self, count):
        """Prompts of both kinds for training shots, as ReiT mixes them; in random order, with their labels."""
        rows = self.shot_ids()[:count]
        rows, kinds = np.tile(rows, 2), np.repeat([False, True], len(rows))
        order = np.random.default_rng(0).permutation(len(rows))
        rows, kinds = rows[order], kinds[order]
        return self._texts(rows, self.prompter.rows.item[rows], kinds), self.prompter.rows.label[rows]


def _tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", model_max_length=8192)


def make_llm(shape, texts, device, dtype, within):
    """A random LLM of a shape, saved with a tokenizer of the texts' words in a new folder within another.

    Returns:
        tuple: model, PromptTokenizer, pathlib.Path.
    """
    hidden, inner, layers, heads = SHAPES[shape]
    folder = Path(tempfile.mkdtemp(dir=within))
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
            dtype=dtype,
        )
    ).save_pretrained(folder)
    _tokenizer(texts[:2000]).save_pretrained(folder)
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    tokenizer = PromptTokenizer(PreTrainedTokenizerFast.from_pretrained(folder), "never", "", ("Yes", "No"))
    return llm, tokenizer, folder


def real_llm(path, dtype, within):
    """A real LLM, a folder or a GGUF file; as `make_llm` gives it, on the CPU, its new folder with the weights in `dtype`."""
    source = unpacked(path, cache_folder({"cache_dir": None})) if is_gguf(str(path)) else Path(path)
    folder = Path(tempfile.mkdtemp(dir=within))
    llm, own = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval(), AutoTokenizer.from_pretrained(source)
    own.chat_template = None  # prompts are plain texts here, which a CrossEncoder would make messages of
    llm.save_pretrained(folder)
    own.save_pretrained(folder)
    return llm, PromptTokenizer(own, "never", "", ("Yes", "No")), folder


def make_workload(texts, labels, made):
    """A Workload of texts for an LLM that `make_llm` made."""
    llm, tokenizer, folder = made
    return Workload(texts, labels, llm, tokenizer, tokenizer.answer_ids(texts[:5]), folder)
