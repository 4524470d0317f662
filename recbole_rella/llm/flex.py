"""Attention within a PromptTree by PyTorch's FlexAttention: one call for the whole tree, blocks without a pair left out.

Depth first, the tokens that attend to token k are those from k to before `behind[k]`: a test of two numbers, which the kernel makes
itself, so that no mask of all pairs is ever stored. Which blocks of 128 x 128 pairs have none, some or all of their pairs follows
from the same numbers, without making the mask either.

Tested on a CPU, where PyTorch runs it uncompiled; it has not been run on a GPU yet. `tree_way` tries it there before it is used,
and takes a mask where it does not run or gives other logits or gradients.
"""

import functools

import numpy as np
import torch

BLOCK = 128  # of FlexAttention's kernels


def blocks(tree):
    """Which blocks of pairs FlexAttention computes.

    Args:
        tree (PromptTree): m tokens, in n blocks of BLOCK.

    Returns:
        tuple of numpy.ndarray: where a block has some pair that attends, and where all of its pairs do, bool [n, n] (rows attend
        to columns).
    """
    n = -(-len(tree) // BLOCK)
    ends = np.zeros(n * BLOCK, dtype=np.int64)
    ends[: len(tree)] = tree.behind
    ends = ends.reshape(n, BLOCK)
    begins = np.arange(n) * BLOCK
    below = begins[None] < begins[:, None]
    some = below & (ends.max(axis=1)[None] > begins[:, None])
    every = below & (ends.min(axis=1)[None] >= begins[:, None] + BLOCK)
    return some | np.eye(n, dtype=bool), every


def _listed(chosen):
    """How many blocks of each row are chosen, and which, those first, for FlexAttention: int32 [1, 1, n], [1, 1, n, n]."""
    order = np.argsort(~chosen, axis=1, kind="stable")
    return [torch.from_numpy(values.astype(np.int32))[None, None] for values in (chosen.sum(axis=1), order)]


def block_mask(tree, device):
    """What FlexAttention computes of a tree.

    Args:
        tree (PromptTree): m tokens.
        device (torch.device): of the LLM.

    Returns:
        torch.nn.attention.flex_attention.BlockMask: equal to what ``create_block_mask`` gives, which makes all m x m pairs first.
    """
    from torch.nn.attention.flex_attention import BlockMask  # torch 2.5 and newer

    some, every = blocks(tree)
    # A kernel may ask beyond the last token, up to the end of its block.
    behind = torch.zeros(len(some) * BLOCK, dtype=torch.int32)
    behind[: len(tree)] = torch.from_numpy(tree.behind)
    behind = behind.to(device)

    def attends(batch, head, query, key):
        return (key <= query) & (query < behind[key])

    parts = [part.to(device) for part in (*_listed(some & ~every), *_listed(every))]
    return BlockMask.from_kv_blocks(*parts, BLOCK_SIZE=BLOCK, mask_mod=attends, seq_lengths=(len(tree), len(tree)))


@functools.cache
def _flex_attention(device_type):
    from torch.nn.attention.flex_attention import flex_attention

    if device_type == "cpu":
        return flex_attention  # stores all pairs; for tests
    return torch.compile(flex_attention, dynamic=True)  # a few kernels for trees of all lengths


def attention(mask, query, key, value, scaling):
    """Attention of a tree.

    Args:
        mask (BlockMask): of `block_mask`.
        query (torch.Tensor): [1, heads, m, d]; key, value: [1, key heads, m, d].
        scaling (float or None): of the products.

    Returns:
        torch.Tensor: [1, m, heads, d].
    """
    groups = query.shape[1] // key.shape[1]
    if groups & (groups - 1):  # the kernels share keys among a power of two of heads
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        groups = 1
    flex_attention = _flex_attention(query.device.type)
    return flex_attention(query, key, value, block_mask=mask, scale=scaling, enable_gqa=groups > 1).transpose(1, 2)
