"""The embedded LLM (`llm: mini`): a small Llama made from the data set itself, for machines that reach no model hub.

Decisions:
- The result is an ordinary Hugging Face checkpoint folder, so everything after it goes the way any LLM goes.
- The tokenizer is byte-level BPE whose merges may cross spaces within a phrase: a frequent title becomes one token. A
  prompt is half as long, and a title has an embedding of its own, which is what collaborative signals attach to.
- A document is the prompt of a training row with its answer, and the loss is taken wherever the document tells an answer
  or a rating: each shown behaviour is a target whose past stands before it. Half of the documents show recent
  behaviours, half retrieved ones.
- It reads the training split alone. So it has read every training row, whatever train_shots says: with this LLM
  "few-shot" is about the tuning only.
"""

import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recbole_rella.files import fingerprint, lock, replacing
from recbole_rella.llm.scoring import answers_alone, pad
from recbole_rella.prompt.tokenization import PromptTokenizer

logger = logging.getLogger(__name__)

_VERSION = 2  # part of the cache key: raise it when the same input would give another LLM
_DOCUMENTS_A_STEP = 16
_OTHER_TOKENS = 512
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
    seed: int


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
    for text, spans in documents:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        inner = {position for span in spans for position in range(*span)}
        for begin, end in offsets:
            covered = sum(position in inner for position in range(begin, end) if not text[position].isspace())
            if 0 < covered < len(re.sub(r"\s", "", text[begin:end])):
                return False
    return True


def _batches(tokenizer, documents):
    """Token ids [n, longest], and the places [m] of the tokens that are predicted (row, position before the token).

    Documents of similar length share a batch, which leaves little padding; the batches come in random order.
    """
    documents = sorted(documents, key=lambda document: len(document[0]))
    for batch in torch.randperm(-(-len(documents) // _DOCUMENTS_A_STEP)).tolist():
        texts, spans = zip(*documents[batch * _DOCUMENTS_A_STEP : (batch + 1) * _DOCUMENTS_A_STEP])
        encoded = tokenizer.with_spans(list(texts), spans)
        rows = torch.tensor([row for row, (_, positions) in enumerate(encoded) for _ in positions])
        positions = torch.tensor([position for _, positions in encoded for position in positions])
        yield pad([ids for ids, _ in encoded]), rows, positions - 1


def _train(model, tokenizer, epoch_documents, steps_an_epoch, settings, device, show_progress):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    total = steps_an_epoch * settings.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=total, pct_start=0.1)
    tokenizer = PromptTokenizer(tokenizer, "never", system="", answers=())
    model.train()
    with tqdm(total=total, desc="Pretraining mini", disable=not show_progress, ncols=100) as bar:
        for epoch in range(settings.epochs):
            losses = []
            for ids, rows, positions in _batches(tokenizer, epoch_documents(epoch)):
                ids, rows, positions = ids.to(device), rows.to(device), positions.to(device)
                with answers_alone(model, (rows, positions)):
                    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[rows, positions]
                answers = ids[rows, positions + 1]
                # What else could be said there: some other tokens, anew each step. The whole vocabulary would cost as much
                # as the rest of the model.
                others = torch.randint(len(model.lm_head.weight), (_OTHER_TOKENS,), device=device)
                candidates, places = torch.unique(torch.cat([answers, others]), return_inverse=True)
                logits = F.linear(hidden, model.lm_head.weight[candidates])
                loss = F.cross_entropy(logits, places[: len(answers)])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
                bar.set_postfix(epoch=epoch, loss=f"{losses[-1]:.4f}")
            logger.info("Pretraining mini: epoch %d of %d, mean loss %.4f", epoch + 1, settings.epochs, np.mean(losses))
    model.eval()


def _is_whole(folder):
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # a damaged checkpoint fails in many ways, and the remedy is the same
        if folder.exists():
            logger.warning("The embedded LLM in [%s] is damaged (%s) and is made again.", folder, error)
        return False
    return True


def mini_llm(texts, epoch_documents, documents_an_epoch, key, settings, cache_folder, device, show_progress=False):
    """The folder of the embedded LLM, pretrained now or taken from the cache.

    Neither changes the state of the random generators: a run that finds the LLM in the cache goes on as one that makes it.

    Args:
        texts (list of str): what the tokenizer is trained on beside documents: items and profiles, never ratings.
        epoch_documents (callable): epoch number -> list of (text, spans of answers and ratings), training rows only.
        documents_an_epoch (int): how many.
        key (str): fingerprint of all that the texts and documents depend on.
        settings (MiniSettings): size and training.
        cache_folder (pathlib.Path): where checkpoints are kept.
        device (torch.device): where it is pretrained.
        show_progress (bool): whether to show a progress bar.

    Returns:
        pathlib.Path: a Hugging Face checkpoint folder.
    """
    folder = Path(cache_folder) / f"mini-{fingerprint(_VERSION, key, asdict(settings))}"
    with lock(folder):  # of two runs that need the same one, the second waits for the first
        if folder.exists() and _is_whole(folder):
            logger.info("The embedded LLM was pretrained earlier: [%s]", folder)
        else:
            _make(folder, texts, epoch_documents, documents_an_epoch, settings, device, show_progress)
    return folder


def _make(folder, texts, epoch_documents, documents_an_epoch, settings, device, show_progress):
    logger.info("Pretraining the embedded LLM (llm: mini) on the training split.")
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings.seed)
        sample = epoch_documents(0)
        for pieces in (_PHRASES, _WORDS):
            tokenizer = _train_tokenizer([*texts, *(text for text, _ in sample)], settings.vocab_size, pieces)
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
        model = LlamaForCausalLM(config).to(device)
        steps = -(-documents_an_epoch // _DOCUMENTS_A_STEP)
        if settings.epochs:
            _train(model, tokenizer, epoch_documents, steps, settings, device, show_progress)
        with replacing(folder) as temporary:
            model.to("cpu").save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
