"""The embedded LLM (`llm: mini`): a small Llama made from the data set itself, for machines that reach no model hub.

Decisions:
- The result is an ordinary Hugging Face checkpoint folder, so everything after it goes the way any LLM goes.
- The tokenizer is byte-level BPE whose merges may cross spaces within a phrase: a frequent title becomes one token. A
  prompt is half as long, and a title has an embedding of its own, which is what collaborative signals attach to.
- A document is the prompt of a training row with its answer, and the loss is taken wherever the document tells an answer
  or a rating: each shown behaviour is a target whose past stands before it. Half of the documents show recent
  behaviours, half retrieved ones.
- Where prompts end with a soft token of the numbers of their row, one of its own stands before each answer of a document, so that
  every answer is learned from numbers and words together; and each step some rows from their numbers alone, so that what these
  say is learned from all rows, whatever words stand before. The projector is kept in the folder, beside the LLM.
- Some tokens are left out while it learns (mini_dropout): else it learns titles by heart, and reads its prompt less.
- It reads the training split alone. So it has read every training row, whatever train_shots says: with this LLM
  "few-shot" is about the tuning only.
"""

import logging
import re
from bisect import bisect_right
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recbole_rella.files import fingerprint, lock, replacing_folder
from recbole_rella.llm.products import fast_products
from recbole_rella.llm.rellax import EncodedNumbers
from recbole_rella.llm.scoring import answers_alone, pad
from recbole_rella.llm.soft_tokens import SOFT_TOKENS, SoftTokens
from recbole_rella.prompt.soft_places import SoftPlaces
from recbole_rella.prompt.tokenization import PromptTokenizer

logger = logging.getLogger(__name__)

_VERSION = 4  # part of the cache key: raise it when the same input would give another LLM
_DOCUMENTS_A_STEP = 16
_OTHER_TOKENS = 512
_SOFT = "history"
# Rows that a step learns from their numbers alone: a token each.
_ROWS_ALONE = 1024
# Beside numbers, what is said of a behaviour behind its first answer follows from that but for its degree: it counts less.
_LATER = 0.2
# It ends as a running mean of its weights over about this part of the steps, which varies less than the weights of one step.
_AVERAGED = 0.2
_MAX_POSITIONS = 4096
# Phrases between punctuation, a parenthesis and a line break each being a piece of its own; and plain words, for
# templates in which an answer or a rating is not such a phrase.
_PHRASES = r" ?\([^()\n]*\)| ?[^\s:,;|()\[\]]+(?: [^\s:,;|()\[\]]+)*|[:,;|()\[\]]|\s"
_WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s"


@dataclass(frozen=True)
class MiniSettings:
    """Size and training of the embedded LLM; see mini_* in properties/model/ReLLa.yaml."""

    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    epochs: int
    learning_rate: float
    weight_decay: float
    dropout: float
    seed: int


@dataclass(frozen=True, eq=False)
class Document:
    """What the embedded LLM reads and learns.

    Attributes:
        text (str): a prompt with its answer.
        spans (list of tuple): (begin, end) of the characters that it learns to say, ascending.
        first (dict): place in `spans` of what is said first of a behaviour, or of the target -> the row_id of that, ascending.
    """

    text: str
    spans: list
    first: dict

    @property
    def places(self):
        """Where soft tokens stand that are told before it is learned: in characters, behind the last word before, ascending."""
        return [len(self.text[: self.spans[place][0]].rstrip()) for place in self.first]


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers of rows of which soft tokens are made.

    Attributes:
        names (tuple of str): of the numbers.
        rows (numpy.ndarray): row_ids, int64 [n], ascending.
        table (numpy.ndarray): float32 [n, names], nan where there is no value.
        labels (numpy.ndarray): int8 [n].
        learned (numpy.ndarray): of which of them labels are learned from numbers alone, places in `rows`, int64 [m].
        answers (tuple of str): what follows a prompt of a row with the label 0, and with the label 1.
    """

    names: tuple
    rows: np.ndarray
    table: np.ndarray
    labels: np.ndarray
    learned: np.ndarray
    answers: tuple

    def of(self, rows):
        """Of rows, float32 torch.Tensor [m, names]."""
        return torch.from_numpy(self.table[np.searchsorted(self.rows, rows)])


def _train_tokenizer(texts, vocab_size, pieces):
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    bytes_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=_MAX_POSITIONS
    )


def _spans_are_tokens(tokenizer, documents):
    """Whether no token holds part of an answer or rating together with something else."""
    for document in documents:
        offsets = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        inner = {position for span in document.spans for position in range(*span)}
        for begin, end in offsets:
            covered = sum(position in inner for position in range(begin, end) if not document.text[position].isspace())
            if 0 < covered < len(re.sub(r"\s", "", document.text[begin:end])):
                return False
    return True


@dataclass(frozen=True, eq=False)
class _Batch:
    """Some documents as the LLM gets them: token ids, int64 [n, longest]; of each of the m tokens that it learns the document, the
    position before it, and its weight in the loss, [m]; and the row_ids of the soft tokens, whose ids ascend in their order."""

    ids: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor
    told: list


def _batches(tokenizer, documents, first_soft):
    """Documents of similar length share a batch, which leaves little padding; the batches come in random order.

    Args:
        tokenizer (PromptTokenizer), documents (list of Document): of them.
        first_soft (int or None): the id from which those of soft tokens ascend; None where there are none.

    Yields:
        _Batch: of each.
    """
    documents = sorted(documents, key=lambda document: len(document.text))
    for batch in torch.randperm(-(-len(documents) // _DOCUMENTS_A_STEP)).tolist():
        chosen = documents[batch * _DOCUMENTS_A_STEP : (batch + 1) * _DOCUMENTS_A_STEP]
        places = None if first_soft is None else [document.places for document in chosen]
        encoded = tokenizer.with_spans([document.text for document in chosen], [document.spans for document in chosen], places)
        joint, rows, positions, weights, free = [], [], [], [], first_soft or 0
        for row, (document, (ids, tokens, before)) in enumerate(zip(chosen, encoded)):
            joint.append(np.insert(ids, before, np.arange(free, free + len(before))))
            free += len(before)
            for place, learned in enumerate(tokens):
                rows += [row] * len(learned)
                weights += [1.0 if first_soft is None or place in document.first else _LATER] * len(learned)
                # Soft tokens that stand before a token move it.
                positions += [position + bisect_right(before, position) - 1 for position in learned]
        told = [] if first_soft is None else [row for document in chosen for row in document.first.values()]
        yield _Batch(pad(joint), torch.tensor(rows), torch.tensor(positions), torch.tensor(weights), told)


def _alone(tokenizer, numbers, first_soft):
    """Rows of which nothing is told but their numbers, and what is to be answered: a _Batch without end, drawn anew each time."""
    spans = [[(len(text) - len(text.lstrip()), len(text))] for text in numbers.answers]
    encoded = tokenizer.with_spans(list(numbers.answers), spans, [[0], [0]])
    while True:
        chosen = numbers.learned[torch.randint(len(numbers.learned), (_ROWS_ALONE,)).numpy()]
        joint, rows, positions = [], [], []
        for row, label in enumerate(numbers.labels[chosen].tolist()):
            ids, ((first, *_),), (before,) = encoded[label]
            joint.append([*ids[:before], first_soft + row, *ids[before:]])
            rows.append(row)
            positions.append(first)
        weights = torch.ones(_ROWS_ALONE)
        yield _Batch(pad(joint), torch.tensor(rows), torch.tensor(positions), weights, numbers.rows[chosen].tolist())


def _some_left_out(ids, rows, positions, part, unknown, vocabulary):
    """Token ids of which some are the unknown one; those that are learned, those before them, and soft tokens stay."""
    left_out = (torch.rand(ids.shape, device=ids.device) < part) & (ids < vocabulary)
    left_out[rows, positions] = left_out[rows, positions + 1] = False
    return ids.masked_fill(left_out, unknown)


def _loss(model, soft, numbers, batch, dropout, unknown):
    """Cross-entropy of what a batch is to learn, weighted, float32 []."""
    device, vocabulary = model.device, len(model.lm_head.weight)
    ids, rows, positions, weights = (part.to(device) for part in (batch.ids, batch.rows, batch.positions, batch.weights))
    answers = ids[rows, positions + 1]
    ids = _some_left_out(ids, rows, positions, dropout, unknown, vocabulary)
    telling = nullcontext() if soft is None else soft.one_each(numbers.of(batch.told))
    with answers_alone(model, (rows, positions)), telling:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[rows, positions]
    # What else could be said there: some other tokens, anew each step. The whole vocabulary would cost as much as the rest of the
    # model.
    others = torch.randint(vocabulary, (_OTHER_TOKENS,), device=device)
    candidates, places = torch.unique(torch.cat([answers, others]), return_inverse=True)
    logits = F.linear(hidden, model.lm_head.weight[candidates])
    losses = F.cross_entropy(logits, places[: len(answers)], reduction="none")
    return (losses * weights).sum() / weights.sum()


def _train(model, soft, tokenizer, epoch_documents, steps_an_epoch, numbers, settings, show_progress):
    """Pretrain an LLM, and its soft tokens where it has them (SoftTokens or None, Numbers or None)."""
    trained = [*model.parameters(), *(() if soft is None else soft.parameters())]
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    total = steps_an_epoch * settings.epochs
    # OneCycleLR divides by the length of its first phase, which a tenth of 10 steps leaves none.
    rising = 0.1 if 0.1 * total != 1 else 0.2
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=total, pct_start=rising)
    unknown, first_soft = tokenizer.eos_token_id, None if soft is None else len(tokenizer)
    tokenizer = PromptTokenizer(tokenizer, "never", system="", answers=())
    alone = None if soft is None else _alone(tokenizer, numbers, first_soft)
    average, averaged = get_ema_multi_avg_fn(1 - 1 / (1 + _AVERAGED * total)), None
    model.train()
    with tqdm(total=total, desc="Pretraining mini", disable=not show_progress, ncols=100) as bar, fast_products():
        for epoch in range(settings.epochs):
            losses = []
            for batch in _batches(tokenizer, epoch_documents(epoch), first_soft):
                loss = _loss(model, soft, numbers, batch, settings.dropout, unknown)
                losses.append(loss.item())
                if alone is not None:
                    loss = loss + _loss(model, soft, numbers, next(alone), settings.dropout, unknown)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    averaged = averaged or [weights.clone() for weights in trained]
                    average(averaged, trained, None)
                bar.update()
                bar.set_postfix(epoch=epoch, loss=f"{losses[-1]:.4f}")
            logger.info("Pretraining mini: epoch %d of %d, mean loss %.4f", epoch + 1, settings.epochs, np.mean(losses))
    with torch.no_grad():
        for weights, mean in zip(trained, averaged):
            weights.copy_(mean)
    model.eval()


def _is_whole(folder, has_soft):
    try:
        if has_soft:
            load_file(folder / SOFT_TOKENS)
        AutoModelForCausalLM.from_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # a damaged checkpoint fails in many ways, and the remedy is the same
        if folder.exists():
            logger.warning("The embedded LLM in [%s] is damaged (%s) and is made again.", folder, error)
        return False
    return True


def mini_llm(texts, epoch_documents, documents_an_epoch, key, settings, cache_folder, device, show_progress=False, numbers=None):
    """The folder of the embedded LLM, pretrained now or taken from the cache.

    Neither changes the state of the random generators: a run that finds the LLM in the cache goes on as one that makes it.

    Args:
        texts (list of str): what the tokenizer is trained on beside documents: items and profiles, never ratings.
        epoch_documents (callable): epoch number -> list of Document, of training rows only.
        documents_an_epoch (int): how many.
        key (str): fingerprint of all that the texts and documents depend on.
        settings (MiniSettings): size and training.
        cache_folder (pathlib.Path): where checkpoints are kept.
        device (torch.device): where it is pretrained.
        show_progress (bool): whether to show a progress bar.
        numbers (Numbers, optional): of all rows that the soft tokens of documents are made of.

    Returns:
        pathlib.Path: a Hugging Face checkpoint folder; with `numbers`, soft_tokens.safetensors beside the LLM.
    """
    folder = Path(cache_folder) / f"mini-{fingerprint(_VERSION, key, asdict(settings))}"
    with lock(folder):  # of two runs that need the same one, the second waits for the first
        if folder.exists() and _is_whole(folder, numbers is not None):
            logger.info("The embedded LLM was pretrained earlier: [%s]", folder)
        else:
            _make(folder, texts, epoch_documents, documents_an_epoch, settings, device, show_progress, numbers)
    return folder


def _make(folder, texts, epoch_documents, documents_an_epoch, settings, device, show_progress, numbers):
    logger.info("Pretraining the embedded LLM (llm: mini) on the training split.")
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings.seed)
        sample = epoch_documents(0)
        for pieces in (_PHRASES, _WORDS):
            tokenizer = _train_tokenizer([*texts, *(document.text for document in sample)], settings.vocab_size, pieces)
            if _spans_are_tokens(tokenizer, sample[:200]):
                break
        else:
            logger.warning("Some answers or ratings share a token with other text: the embedded LLM learns them less well.")
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=2 * settings.hidden_size,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            num_key_value_heads=settings.num_heads,
            max_position_embeddings=_MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model, soft = LlamaForCausalLM(config).to(device), None
        if numbers is not None:
            unknown = tokenizer.eos_token_id
            places, encoded = SoftPlaces(first=len(tokenizer), of=(_SOFT,)), EncodedNumbers(numbers.names, numbers.table)
            soft = SoftTokens(model, places, "xavier", {"item": unknown, "row": unknown}, history=encoded).to(device)
        steps = -(-documents_an_epoch // _DOCUMENTS_A_STEP)
        if settings.epochs:
            _train(model, soft, tokenizer, epoch_documents, steps, numbers, settings, show_progress)
        with replacing_folder(folder, own=True) as temporary:  # in the cache
            model.to("cpu").save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            if soft is not None:
                soft.save(temporary)
