"""An LLM with its adapters merged in, as a Hugging Face folder that other programs load.

It has the dtype of the LLM. In float32 its scores are those of LLM and adapters; in bfloat16 or float16 the sum of weights and
adapters is rounded once, and scores differ by as much.

Soft tokens of items become tokens of that LLM: embeddings and tokenizer have one for each item, behind those of the vocabulary, by
the ids that prompts have.
"""

import copy

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from recbole_rella.errors import RellaError
from recbole_rella.llm.scoring import ONE_AT_A_TIME, merged


class MergedFolderError(RellaError):
    """An LLM cannot be written so; the message says why."""


def write_merged(llm, folder, tokenizer, items=None, first=0, item_ids=()):
    """Write weights, configuration, generation settings and tokenizer. AutoModelForCausalLM and AutoTokenizer load them.

    Args:
        llm (peft.PeftModel): with adapters, its weights not quantized; it stays as it is.
        folder (pathlib.Path): written to as it stands: give a temporary name.
        tokenizer (transformers.PreTrainedTokenizerBase): of the LLM.
        items (torch.Tensor, optional): embeddings of the soft tokens of items, float32 [items, H].
        first (int): the id of the first of them.
        item_ids (list of str): by which the tokenizer knows them.

    Raises:
        MergedFolderError: the LLM's embedding, or its tokenizer, does not take them.
    """
    with ONE_AT_A_TIME, torch.no_grad(), merged(llm, rounded=True):
        plain = llm.get_base_model()
        state = {name.replace(".base_layer.", "."): tensor for name, tensor in plain.state_dict().items() if ".lora_" not in name}
        _write(plain, folder, state_dict=state)
    if items is not None:
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        _add_embeddings(plain, items.cpu(), first)
        _write(plain, folder)
        tokenizer = _with_items(tokenizer, item_ids, first)
    tokenizer.save_pretrained(folder)


def _write(llm, folder, **arguments):
    settings = llm.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:
        # Vicuna's, among others, says how to sample, but not to sample; transformers loads that and does not save it.
        llm.generation_config = copy.deepcopy(settings)
        llm.generation_config.do_sample = True
    try:
        llm.save_pretrained(folder, **arguments)
    finally:
        llm.generation_config = settings


def _add_embeddings(llm, vectors, first):
    """Give an LLM more tokens, from `first` on: their embeddings; its head is asked for none of them."""
    llm.resize_token_embeddings(first + len(vectors), mean_resizing=False)
    embedding, ids = llm.get_input_embeddings(), torch.arange(first, first + len(vectors))
    with torch.no_grad():
        # Gemma 3's embedding scales what it has.
        embedding.weight[first:] = (vectors / getattr(embedding, "embed_scale", 1.0)).to(embedding.weight.dtype)
        found = embedding(ids.to(embedding.weight.device)).float()
    if not torch.allclose(found, vectors, rtol=1e-2, atol=1e-3):
        raise MergedFolderError(
            f"export: expected an embedding that gives what it holds, found {type(embedding).__name__}, which does not."
        )


def _with_items(tokenizer, item_ids, first):
    """A tokenizer that knows soft tokens of items by name: programs refuse token ids that it does not know."""
    tokenizer = copy.deepcopy(tokenizer)
    unused = [f"<|unused {place}|>" for place in range(len(tokenizer), first)]
    names = [*unused, *(f"<|item {item}|>" for item in item_ids)]
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    expected = first + len(item_ids)
    if len(tokenizer) != expected:
        raise MergedFolderError(f"export: expected {expected} tokens in the tokenizer with those of items, found {len(tokenizer)}.")
    return tokenizer
