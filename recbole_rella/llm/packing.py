"""Prompts as trees of tokens: what several begin with in common is stored, and computed, once.

Under causal attention a token's state depends on what stands before it alone. So prompts that begin alike share the states
of their beginning, and a forward pass over the tree gives each prompt's answer as a pass over the prompt does, where every
token attends to its own path and has its depth as position. Plain numpy and torch.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class PromptTree:
    """Some prompts as one tree, its tokens depth first.

    Attributes:
        token_ids (torch.Tensor): int64 [m].
        positions (torch.Tensor): depth of each token, int64 [m].
        pieces (list of tuple): begin, shared, length (int): the tokens begin to begin + length are what a prompt has behind
            the first `shared` tokens of the prompt of the piece before.
        ends (torch.Tensor): the last token of each prompt, int64 [n].
        prompts (torch.Tensor): which of the given prompts these are, int64 [n].
        longest (int): tokens of the longest prompt.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    pieces: list
    ends: torch.Tensor
    prompts: torch.Tensor
    longest: int

    def __len__(self):
        return len(self.token_ids)

    @cached_property
    def behind(self):
        """The first token behind all that are below a token, which follow it up to there: int64 [m]."""
        behind = np.full(len(self), len(self))
        path, longest = np.empty(self.longest, dtype=np.int64), 0
        for begin, shared, length in self.pieces:
            behind[path[shared:longest]] = begin
            longest = shared + length
            path[shared:longest] = np.arange(begin, begin + length)
        return behind

    def mask(self, device):
        """Which token (row) attends to which (column): itself and those on its path.

        Returns:
            torch.Tensor: bool [m, m].
        """
        places = torch.arange(len(self), device=device)
        return (places[None] <= places[:, None]) & (places[:, None] < torch.from_numpy(self.behind).to(device)[None])


def shared_beginnings(token_ids, lengths):
    """Sort prompts so that those that begin alike are neighbours.

    Args:
        token_ids (numpy.ndarray): right-padded, int [n, longest].
        lengths (numpy.ndarray): tokens of each prompt, int [n].

    Returns:
        tuple of numpy.ndarray: the prompts in order, int64 [n]; how many tokens each begins with in common with the one before
        it in this order, int64 [n].
    """
    if token_ids.size == 0:
        return np.arange(len(token_ids)), np.zeros(len(token_ids), dtype=np.int64)
    # Big-endian integers sort as their bytes do, and bytes of whole rows are sorted at once. Padding may equal a token: of two
    # such prompts the shorter one comes first.
    keys = np.column_stack([token_ids, lengths]).astype(">u4" if token_ids.max() < 2**32 else ">u8")
    order = np.argsort(keys.view(f"V{keys.itemsize * keys.shape[1]}").ravel(), kind="stable")
    token_ids, lengths = token_ids[order], np.asarray(lengths)[order]
    differs = token_ids[1:] != token_ids[:-1]
    equal = np.where(differs.any(axis=1), differs.argmax(axis=1), token_ids.shape[1])
    shared = np.zeros(len(order), dtype=np.int64)
    shared[1:] = np.minimum(equal, np.minimum(lengths[1:], lengths[:-1]))
    return order, shared


def prompt_trees(token_ids, lengths, budget):
    """Pack prompts into trees.

    Args:
        token_ids (torch.Tensor): right-padded, int64 [n, longest], on the CPU.
        lengths (torch.Tensor): tokens of each prompt, at least 1, int64 [n].
        budget (int): tokens a tree may have; a single prompt may exceed it.

    Returns:
        list of PromptTree: every prompt in one of them.
    """
    ids, lengths = token_ids.numpy(), lengths.numpy()
    order, shared = shared_beginnings(ids, lengths)
    trees, group, tokens = [], [], 0
    for prompt, common in zip(order.tolist(), shared.tolist()):
        if group and tokens + lengths[prompt] - common > budget:
            trees.append(_tree(ids, lengths, group))
            group, tokens = [], 0
        common = common if group else 0
        group.append((prompt, common))
        tokens += int(lengths[prompt]) - common
    return [*trees, _tree(ids, lengths, group)] if group else trees


def _tree(ids, lengths, group):
    longest = max(int(lengths[prompt]) for prompt, _ in group)
    path, begin = np.empty(longest, dtype=np.int64), 0
    token_ids, positions, pieces, ends = [], [], [], []
    for prompt, shared in group:
        length = int(lengths[prompt]) - shared
        if length:  # a prompt that another begins with, or equals, adds nothing
            pieces.append((begin, shared, length))
            token_ids.append(ids[prompt, shared : shared + length])
            positions.append(np.arange(shared, shared + length))
            path[shared : shared + length] = np.arange(begin, begin + length)
            begin += length
        ends.append(path[shared + length - 1])
    return PromptTree(
        torch.from_numpy(np.concatenate(token_ids).astype(np.int64)),
        torch.from_numpy(np.concatenate(positions)),
        pieces,
        torch.tensor(ends),
        torch.tensor([prompt for prompt, _ in group]),
        longest,
    )
