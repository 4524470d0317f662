"""Trees of prompts hold every prompt whole, share what can be shared, and mask the rest."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_rella.llm.packing import prompt_trees, shared_beginnings
from recbole_rella.llm.scoring import pad

# Few different tokens, 0 among them, so that beginnings are often equal and padding looks like a token.
PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)


def trees_of(prompts, budget):
    return prompt_trees(pad(prompts), torch.tensor([len(p) for p in prompts]), budget)


def beginnings(prompts):
    return {tuple(prompt[:n]) for prompt in prompts for n in range(1, len(prompt) + 1)}


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 40))
def test_a_tree_is_its_prompts(prompts, budget):
    trees = trees_of(prompts, budget)
    assert sorted(torch.cat([tree.prompts for tree in trees]).tolist()) == list(range(len(prompts)))
    for tree in trees:
        mask, tokens = tree.mask("cpu"), tree.token_ids.numpy()
        for prompt, end in zip(tree.prompts.tolist(), tree.ends.tolist()):
            # What the last token attends to, in the order of the tree, is the prompt.
            assert tokens[mask[end].numpy()].tolist() == prompts[prompt]
            assert tree.positions[mask[end]].tolist() == list(range(len(prompts[prompt])))
        # Each beginning stands in it once.
        own = [prompts[prompt] for prompt in tree.prompts.tolist()]
        assert len(tree) == len(beginnings(own)) == sum(length for _, _, length in tree.pieces)
        assert len(tree) <= budget or len(beginnings(own)) == max(map(len, own))
        assert tree.longest == max(map(len, own))


@settings(deadline=None)
@given(PROMPTS)
def test_every_token_attends_to_its_path(prompts):
    (tree,) = trees_of(prompts, 1000)
    mask = tree.mask("cpu").numpy()
    parents = {}
    for prompt in prompts:
        for n in range(1, len(prompt) + 1):
            parents[tuple(prompt[:n])] = {tuple(prompt[:m]) for m in range(1, n + 1)}
    paths = {tuple(tree.token_ids[row].tolist()): row for row in torch.from_numpy(mask)}
    assert set(paths) == set(parents)
    places = {beginning: int(np.flatnonzero(row.numpy())[-1]) for beginning, row in paths.items()}
    for beginning, ancestors in parents.items():
        assert set(np.flatnonzero(mask[places[beginning]])) == {places[ancestor] for ancestor in ancestors}


@settings(deadline=None)
@given(PROMPTS)
def test_neighbours_share_the_most(prompts):
    lengths = np.array([len(p) for p in prompts])
    order, shared = shared_beginnings(pad(prompts).numpy(), lengths)
    assert sorted(order.tolist()) == list(range(len(prompts))) and shared[0] == 0
    assert (lengths[order] - shared).sum() == len(beginnings(prompts))


def test_large_token_ids_are_sorted_as_numbers():
    order, shared = shared_beginnings(np.array([[70000, 1], [255, 2], [70000, 0]]), np.array([2, 2, 2]))
    assert order.tolist() == [1, 2, 0] and shared.tolist() == [0, 0, 1]
