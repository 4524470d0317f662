"""Attention within a PromptTree, through transformers' own attention interface or a 4-D mask.

Three ways, equal in what they compute:

flex    one call for the whole tree by PyTorch's FlexAttention (flex.py), compiled; blocks of pairs that are masked are left out.
        Made for GPUs.
pieces  one attention call for each piece of the tree, over the keys of its own path; nothing is computed that is masked. Made for
        CPUs, where a call costs little.
mask    one call for the whole tree with a 4-D mask, by the attention that the LLM was loaded with. For what the others do not have.
        The mask has all pairs of tokens, so such trees are small (`mask_tokens`).

`tree_way` finds out which one an LLM takes, by trying: LLMs whose attention needs more than a path and a depth (linear
positions such as ALiBi, soft capping, attention sinks, states of recurrent layers) give other logits within a tree, and are
scored without one. Layers that see the last tokens alone (sliding windows) make no difference as long as no prompt is longer than
the window; with longer ones trees go piece by piece, or not at all.
"""

import inspect
import math
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from recbole_rella.errors import RellaError
from recbole_rella.llm import flex
from recbole_rella.llm.packing import prompt_trees
from recbole_rella.llm.trial import problem, say_once

_NAME = "recbole_rella_tree"
_attend = []  # attention within the tree of the forward pass under way, innermost last
# What a mask of all pairs of tokens, and the scores of attention that are as large, may take: a part of the smallest GPUs' 16 GB.
MASK_BYTES = 1 << 30


class TreeAttentionError(RellaError):
    """An LLM's attention needs more than the path of each token."""


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
    """Attention within a tree; the signature is that of transformers' attention functions, shapes [1, heads, m, d]."""
    needs = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if needs or dropout or attention_mask is not None:
        raise TreeAttentionError(f"{needs or 'dropout or a mask'} in {type(module).__name__}")
    return _attend[-1](module, query, key, value, scaling, others.get("sliding_window")), None


def _pieces(tree, module, query, key, value, scaling, window):
    if torch.is_grad_enabled():
        return _pieces_with_gradient(tree, query, key, value, scaling, window)
    # After the last layer nothing is read but the ends of prompts.
    is_last = getattr(module, "layer_idx", None) == module.config.get_text_config().num_hidden_layers - 1
    return _pieces_in_place(tree, query, key, value, scaling, window, is_last)


def _flex(mask, module, query, key, value, scaling, window):
    # No prompt is longer than a window here (`tree_way`).
    return flex.attention(mask, query, key, value, scaling)


def _causal(shared, length, window, device):
    """What the last `length` of shared + length tokens attend to, themselves included.

    Args:
        window (int or None): how many tokens each of them sees at most.

    Returns:
        tuple: the first of the tokens that any of them sees, int; arguments of PyTorch's attention to those from there on.
    """
    first = 0 if window is None else max(0, shared + 1 - window)
    if length == 1:
        return first, {}
    is_cut = window is not None and shared + length > window
    if not shared and not is_cut:
        return first, {"is_causal": True}
    places = torch.arange(first, shared + length, device=device)
    asking = places[shared - first :, None]
    seen = places[None] <= asking
    if is_cut:
        seen &= places[None] > asking - window
    return first, {"attn_mask": seen[None, None]}


def _pieces_in_place(tree, query, key, value, scaling, window, ends_alone):
    # The path of a piece is that of the piece before up to a point, and the piece: one buffer holds path after path, and
    # nothing is copied but the piece.
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    keys = query.new_empty(1, key.shape[1], groups, tree.longest, key.shape[3])
    values = query.new_empty(1, key.shape[1], groups, tree.longest, value.shape[3])
    out = (query.new_zeros if ends_alone else query.new_empty)(1, query.shape[2], heads, value.shape[3])
    ends = sorted(set(tree.ends.tolist()), reverse=True)
    for begin, shared, length in tree.pieces:
        here, there = slice(begin, begin + length), slice(shared, shared + length)
        keys[:, :, :, there] = key[:, :, None, here]
        values[:, :, :, there] = value[:, :, None, here]
        asked = [(here, shared, length)]
        if ends_alone:
            asked = []
            while ends and ends[-1] < begin + length:
                end = ends.pop()
                asked.append((slice(end, end + 1), shared + end - begin, 1))
        for rows, before, count in asked:
            first, masked = _causal(before, count, window, query.device)
            path = slice(first, before + count)
            out[:, rows] = F.scaled_dot_product_attention(
                query[:, :, rows],
                keys[:, :, :, path].flatten(1, 2),
                values[:, :, :, path].flatten(1, 2),
                scale=scaling,
                **masked,
            ).transpose(1, 2)
    return out


def _pieces_with_gradient(tree, query, key, value, scaling, window):
    sizes = [length for _, _, length in tree.pieces]
    groups = query.shape[1] // key.shape[1]
    parts = [states.split(sizes, dim=2) for states in (query, key, value)]
    path, out = [], []
    for (_, shared, length), q, k, v in zip(tree.pieces, *parts):
        rest, kept = shared, []
        for begun in path:  # (keys, values, tokens): what of the path so far is shared
            if rest <= 0:
                break
            kept.append(begun if begun[0].shape[2] <= rest else tuple(states[:, :, :rest] for states in begun))
            rest -= begun[0].shape[2]
        path = [*kept, (k, v)]
        first, masked = _causal(shared, length, window, q.device)
        keys, values = (torch.cat(states, dim=2)[:, :, first:].repeat_interleave(groups, dim=1) for states in zip(*path))
        out.append(F.scaled_dot_product_attention(q, keys, values, scale=scaling, **masked))
    return torch.cat(out, dim=2).transpose(1, 2)


AttentionInterface.register(_NAME, _attention)


@contextmanager
def tree_attention(llm, way):
    """Within this context, forward passes of an LLM may take trees.

    Args:
        llm (transformers.PreTrainedModel): a causal LM.
        way (str): flex, pieces or mask, as `tree_way` found it.

    Yields:
        callable: PromptTree -> keyword arguments of the LLM's forward pass, which must come before the next tree's.
    """
    if way == "mask":
        yield lambda tree: {**_inputs(llm, tree), "attention_mask": _mask(llm, tree)}
        return
    before = llm.config._attn_implementation
    llm.set_attn_implementation(_NAME)
    _attend.append(None)

    def enter(tree):
        _attend[-1] = partial(_flex, flex.block_mask(tree, llm.device)) if way == "flex" else partial(_pieces, tree)
        return _inputs(llm, tree)

    try:
        yield enter
    finally:
        _attend.pop()
        llm.set_attn_implementation(before)


def _inputs(llm, tree):
    on_gpu = llm.device.type == "cuda"
    ids, positions = ((t.pin_memory() if on_gpu else t).to(llm.device, non_blocking=True) for t in (tree.token_ids, tree.positions))
    return {"input_ids": ids[None], "position_ids": positions[None], "use_cache": False}


def _mask(llm, tree):
    """As every kind of attention takes it: what is added to the scores before the softmax."""
    dtype = _mask_dtype(llm)
    mask = torch.zeros(len(tree), len(tree), dtype=dtype, device=llm.device)
    return mask.masked_fill_(~tree.mask(llm.device), torch.finfo(dtype).min)[None, None]


def _mask_dtype(llm):
    return llm.dtype if llm.dtype.is_floating_point else torch.float32


def _short_sight(llm, longest):
    """What layers see of a prompt that is so long.

    Returns:
        tuple: why an LLM takes no trees of such prompts, str or None; the window that some layer has, int, or None where all see
        the whole prompt.
    """
    config = llm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"}:
        return "some of its layers have no attention to the whole prompt", None
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return None, window if window is not None and slides and longest > window else None


def tree_way(llm, longest):
    """How an LLM takes prompts as trees, found by trying it once on a few tokens, or on some more than a window has.

    Args:
        llm (transformers.PreTrainedModel): a causal LM.
        longest (int): tokens of the longest prompt.

    Returns:
        str or None: flex, pieces, mask, or None for an LLM that takes no trees of such prompts; the log says why.
    """
    reason, window = _short_sight(llm, longest)
    if reason is not None:
        say_once(llm, _WHOLE.format(reason))
        return None
    gradients = torch.is_grad_enabled()
    for way in _candidates(llm):
        if gradients and way != "mask" and _trains_otherwise(llm):
            continue
        if window is not None and way != "pieces":
            continue
        # Kernels that are compiled here have a backward pass that is compiled here.
        compiled = way == "flex" and gradients
        reason = problem(llm, (way, gradients, window), partial(_logits, llm, way), compiled, window or 0)
        if reason is None:
            return way
        if way == "flex":
            say_once(
                llm,
                f"does not run with FlexAttention here ({reason}). Its trees of prompts get a mask of all pairs of tokens, if it "
                "takes one: the scores are the same, but attention costs more, and trees are small.",
            )
    why = "its attention gives other logits within a tree of prompts"
    if window is not None:
        why = f"its layers see the last {window} tokens, and prompts have up to {longest}"
    say_once(llm, _WHOLE.format(why))
    return None


_WHOLE = "scores every prompt whole, as {}: equal beginnings are not shared."


def _logits(llm, way, token_ids, lengths):
    """Logits after the last token of each prompt, which together are one tree."""
    (tree,) = prompt_trees(token_ids, lengths, int(lengths.sum()))
    with tree_attention(llm, way) as enter:
        return llm(**enter(tree)).logits[0, tree.ends[torch.argsort(tree.prompts)].to(llm.device)]


def mask_tokens(llm):
    """How many tokens a tree may have where a mask of all pairs of tokens is made: as many as MASK_BYTES hold.

    A pair takes three booleans and a number of the mask. Attention in plain PyTorch (eager) also stores the scores of every head,
    their softmax in float32, and that in the LLM's dtype; a backward pass needs those of all layers, unless they are recomputed.

    Args:
        llm (transformers.PreTrainedModel): a causal LM.

    Returns:
        int: tokens, at least 1. A single prompt may have more.
    """
    config, size = llm.config.get_text_config(), _mask_dtype(llm).itemsize
    pair = 3 + size
    if llm.config._attn_implementation == "eager":
        layers = config.num_hidden_layers if torch.is_grad_enabled() and not is_recomputed(llm) else 1
        pair += layers * config.num_attention_heads * (2 * size + 4)
    return max(1, math.isqrt(MASK_BYTES // pair))


def _trains_otherwise(llm):
    """Whether training needs what only masks have: dropout of attention, or layers computed again in the backward pass, when
    `tree_attention` is over."""
    config = llm.config.get_text_config()
    dropout = llm.training and (getattr(config, "attention_dropout", 0.0) or getattr(config, "attn_pdrop", 0.0))
    return bool(dropout) or is_recomputed(llm)


def is_recomputed(llm):
    """Whether layers are computed again in the backward pass (gradient checkpointing; transformers renames its own property)."""
    return any(getattr(module, "gradient_checkpointing", False) for module in llm.modules())


def _candidates(llm):
    """The ways that may suit, the better one first."""
    takes_positions = "position_ids" in inspect.signature(llm.forward).parameters
    implementation = getattr(llm.config, "_attn_implementation", None)
    if not takes_positions:
        return []
    masks = ["mask"] if implementation in ("sdpa", "eager") else []
    # transformers keeps the first name for itself, and other libraries of this version range offer no public one.
    can_switch = getattr(llm, "_can_set_attn_implementation", lambda: False)()
    switched = {"cpu": ["pieces"], "cuda": ["flex"]}.get(llm.device.type, [])
    return (switched if can_switch else []) + masks
