"""P(yes): the two answer logits at the one position that matters, from as few tokens as possible.

Two ways, of which the cheaper one is taken: prompts as trees (packing.py), in which equal beginnings are computed once; and
batches of similar length, padded on the right. Under causal attention nothing before the padding sees it, so neither an
attention mask nor position ids are needed there. A prompt's score does not depend on what it is scored with (law 3).

Any number of threads may score with one LLM: they take turns.
"""

import threading
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear, LoraLayer

from recbole_rella import processes
from recbole_rella.llm import flex
from recbole_rella.llm.packing import PromptTree, prompt_trees
from recbole_rella.llm.products import fast_products
from recbole_rella.llm.tree_attention import is_recomputed, mask_tokens, tree_attention, tree_way
from recbole_rella.llm.trial import problem, say_once
from recbole_rella.progress import bar

# Tokens that go through an LLM at a time on a CPU: with more, activations leave its caches, and each of them is a memory
# mapping of its own (results/speed).
CPU_TOKENS = 2048
# While it is scored an LLM is changed: its attention, forward methods of some modules, merged adapters. Threads take turns.
ONE_AT_A_TIME = threading.RLock()
# What one more call of an attention function costs on a CPU, in floating-point operations that could be done meanwhile.
_CALL = 4e6


def pad(sequences):
    """Right-pad token ids with 0.

    Args:
        sequences (list of list of int): n sequences.

    Returns:
        torch.Tensor: int64 [n, longest].
    """
    ids = np.zeros((len(sequences), max(map(len, sequences), default=0)), dtype=np.int64)
    for row, sequence in zip(ids, sequences):
        row[: len(sequence)] = sequence
    return torch.from_numpy(ids)


def unpad(token_ids, lengths):
    """What `pad` padded: int64 tensors [n, longest] and [n] -> list of list of int."""
    return [row[:length] for row, length in zip(token_ids.tolist(), lengths.tolist())]


def batches_by_tokens(lengths, budget):
    """Cut prompts into batches of similar length, longest first.

    Args:
        lengths (numpy.ndarray): tokens of each prompt, int [n].
        budget (int): tokens a batch may have, padding included; a single prompt may exceed it.

    Returns:
        list of numpy.ndarray: places in `lengths`, every place once.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        size = max(1, budget // max(int(lengths[order[begin]]), 1))
        batches.append(order[begin : begin + size])
        begin += size
    return batches


@contextmanager
def answers_alone(llm, places, token_ids=None, parts=None):
    """Within this context, what an LLM computes behind its last attention is computed where answers are read, and not elsewhere.

    The head gives all logits or those of some tokens, the latter in float32 whatever the LLM computes in: in bfloat16 many scores
    would be equal. What the LLM does to its logits afterwards (scaling, soft capping) stays in force, as it is done by the LLM.

    Args:
        llm (transformers.PreTrainedModel): a causal LM.
        places (tuple of torch.Tensor): row and position of each of n answers in what the forward pass gets, int64 [n] each.
        token_ids (list of int, optional): the tokens whose logits are wanted; all by default.
        parts (list of str, optional): what is computed there alone, head, last layer or both; by default as `parts_at_answers`.

    Yields:
        callable: logits of the forward pass -> those of the answers, [n, tokens].
    """
    parts = parts_at_answers(llm) if parts is None else parts
    head = llm.get_output_embeddings()
    few = token_ids is not None and "head" in parts and _has_rows(head)

    def head_at_answers(forward, hidden):
        hidden = hidden[places][:, None]
        if not few:
            return forward(hidden)
        weight, bias = _rows(head, token_ids)  # now: the weights of a divided LLM are whole only within its forward pass
        return F.linear(hidden.to(weight.dtype), weight, bias)

    # Equal prompts of a tree end at one place, whose gradient must count once.
    width = places[1].max() + 1
    flat = torch.unique(places[0] * width + places[1])
    distinct = flat // width, flat % width

    def layer_at_answers(forward, hidden):
        chosen = forward(hidden[distinct][None]).squeeze(0)
        return chosen.new_zeros(*hidden.shape[:-1], chosen.shape[-1]).index_put(distinct, chosen)

    def of_answers(logits):
        logits = logits[:, 0] if "head" in parts else logits[places]
        return logits if few or token_ids is None else logits[:, token_ids]

    # Recomputed in the backward pass, after this context, a layer must be what it was.
    recomputed = torch.is_grad_enabled() and is_recomputed(llm)
    with ExitStack() as replaced:
        if "head" in parts:
            replaced.enter_context(_forward_replaced(head, head_at_answers))
        for module in _behind_last_attention(llm) if "last layer" in parts and not recomputed else ():
            replaced.enter_context(_forward_replaced(module, layer_at_answers))
        yield of_answers


def parts_at_answers(llm):
    """What of an LLM can be computed where answers are read, found by trying it once.

    LLMs that are built otherwise than most, such as gpt-oss, compute all of it at all positions, which takes longer.

    Args:
        llm (transformers.PreTrainedModel): a causal LM, not within `tree_attention`.

    Returns:
        list of str: of head and last layer.
    """
    places = {"head": [llm.get_output_embeddings()], "last layer": _behind_last_attention(llm)}
    parts = [part for part, modules in places.items() if modules and not any(map(_is_hooked, modules))]
    problems = {part: problem(llm, part, partial(_logits, llm, [part])) for part in parts}
    for part, reason in problems.items():
        if reason is not None:
            say_once(llm, f"computes its {part} at all positions; at the answers alone it cannot ({reason}).")
    return [part for part in parts if problems[part] is None]


def _logits(llm, parts, token_ids, lengths):
    """Logits after the last token of each of some prompts, whose parts are computed there alone."""
    places = torch.arange(len(lengths), device=llm.device), (lengths - 1).to(llm.device)
    with answers_alone(llm, places, parts=parts) as of_answers:
        return of_answers(llm(input_ids=token_ids.to(llm.device), use_cache=False).logits)


def _is_hooked(module):
    """Whether gates stand between the two matrices of an adapter in a module (cflora.py): they expect all tokens of a pass."""
    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    return any(down._forward_hooks for layer in layers for down in layer.lora_A.values())


def _has_rows(head):
    """Whether a head is a linear layer, with plain LoRA at most."""
    if type(head) is Linear and not head.training and not head.lora_variant and not any(head.lora_bias.values()):
        head = head.get_base_layer()
    return type(head) is torch.nn.Linear


def _rows(head, token_ids):
    """Weight and bias of such a head for some tokens, in float32 or what it has beyond."""
    base = head.get_base_layer() if isinstance(head, LoraLayer) else head
    wide = torch.promote_types(base.weight.dtype, torch.float32)
    weight, bias = base.weight[token_ids].to(wide), None if base.bias is None else base.bias[token_ids].to(wide)
    if base is not head and not head.merged and not head.disable_adapters:
        for name in set(head.active_adapters) & set(head.lora_A):
            up, down = head.lora_B[name].weight[token_ids], head.lora_A[name].weight
            weight = weight + head.scaling[name] * (up.to(wide) @ down.to(wide))
    return weight, bias


def _behind_last_attention(llm):
    """What the last layer does to each position by itself after its attention, where it is built as most LLMs are."""
    layers = getattr(llm.get_decoder(), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        return []
    modules = getattr(getattr(layers[-1], "self_attn", None), "o_proj", None), getattr(layers[-1], "mlp", None)
    return [module for module in modules if isinstance(module, torch.nn.Module)]


@contextmanager
def _forward_replaced(module, replacement):
    """Calls of a module go to `replacement`, which gets the module's own forward first."""
    own, forward = module.__dict__.get("forward"), module.forward
    module.forward = lambda *inputs: replacement(forward, *inputs)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _plain(llm):
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm


def forward_passes(llm, token_ids, lengths, budget, at_least=1):
    """Divide prompts into forward passes: as trees, if that is cheaper than padded batches by the tokens and attention of both.

    Args:
        llm (torch.nn.Module): a causal LM, with or without PEFT around it.
        token_ids (torch.Tensor): right-padded prompts, int64 [n, longest], on the CPU.
        lengths (torch.Tensor): tokens of each prompt, int64 [n], on the CPU.
        budget (int): tokens that go through the LLM at a time, padding included; a single prompt may exceed it. On a CPU at
            most a few thousand do.
        at_least (int): how many passes are wanted: a budget that gives fewer is cut.

    Returns:
        tuple: list of PromptTree, and the way in which `tree_attention` takes them; or list of torch.Tensor (places of prompts,
        int64), and None.
    """
    plain, n_tokens = _plain(llm), lengths.numpy()
    budget = min(budget, CPU_TOKENS) if plain.device.type == "cpu" else budget
    batches = batches_by_tokens(n_tokens, budget)
    way = tree_way(plain, int(n_tokens.max())) if len(n_tokens) > 1 else None
    passes = [torch.from_numpy(batch) for batch in batches]
    if way is not None:
        trees = prompt_trees(token_ids, lengths, min(budget, mask_tokens(plain)) if way == "mask" else budget)
        if _cost_of_trees(plain, trees, way) < _cost_of_batches(plain, n_tokens, batches):
            passes = trees
        else:
            way = None
    if len(passes) < at_least and len(passes) < len(n_tokens) and budget > 1:
        smaller = min(budget // 2, sum(_tokens(passes, n_tokens)) // at_least)
        return forward_passes(llm, token_ids, lengths, max(1, smaller), at_least)
    return passes, way


def _tokens(passes, n_tokens):
    """Tokens that go through the LLM in each pass."""
    return [len(p) if isinstance(p, PromptTree) else len(p) * int(n_tokens[p].max()) for p in passes]


def _cost(llm, tokens, pairs, calls):
    """Floating-point operations of passes over so many tokens, pairs of tokens that attend, and calls of attention."""
    config = llm.config.get_text_config()
    inner = sum(p.numel() for p in llm.get_decoder().parameters() if p.dim() > 1) - llm.get_input_embeddings().weight.numel()
    return tokens * 2 * inner + (pairs * 4 * config.hidden_size + calls * _CALL) * config.num_hidden_layers


def _cost_of_batches(llm, n_tokens, batches):
    sizes = [(len(batch), int(n_tokens[batch[0]])) for batch in batches]
    return _cost(llm, sum(n * longest for n, longest in sizes), sum(n * longest**2 for n, longest in sizes) / 2, len(sizes))


def _cost_of_trees(llm, trees, way):
    tokens = sum(map(len, trees))
    if way == "mask":
        return _cost(llm, tokens, sum(len(tree) ** 2 for tree in trees), len(trees))
    if way == "flex":
        return _cost(llm, tokens, sum(int(flex.blocks(tree)[0].sum()) for tree in trees) * flex.BLOCK**2, len(trees))
    pieces = [piece for tree in trees for piece in tree.pieces]
    return _cost(llm, tokens, sum(length * (shared + length) for _, shared, length in pieces), len(pieces))


def answer_logits(llm, token_ids, lengths, budget, answer_ids=None, shared=False):
    """Logits after the last token of each prompt.

    Args:
        llm (torch.nn.Module): a causal LM, with or without PEFT around it.
        token_ids (torch.Tensor): right-padded prompts, int64 [n, longest].
        lengths (torch.Tensor): tokens of each prompt, int64 [n].
        budget (int): as for `forward_passes`.
        answer_ids (list of int, optional): the tokens whose logits are wanted; all by default.
        shared (bool): whether the processes of this run, all of which call this, share the forward passes among them.

    Yields:
        tuple: for each forward pass of this process the places of its m prompts, int64 [m], and their logits [m, tokens], on the
        LLM's device, in float32 or what the LLM has beyond it. With a divided LLM some have no prompt: a backward pass through
        such logits has no gradients, but must be made where the others are.
    """
    token_ids, lengths, plain = token_ids.cpu(), lengths.cpu(), _plain(llm)
    several = shared and processes.count() > 1
    with ONE_AT_A_TIME:
        passes, way = forward_passes(llm, token_ids, lengths, budget, 2 * processes.count() if several else 1)
        parts = parts_at_answers(plain)
        mine = [(place, True) for place in range(len(passes))]
        if several:
            mine = processes.share(_tokens(passes, lengths), processes.is_divided(plain))
        with tree_attention(plain, way) if way else nullcontext() as enter:
            for place, counts in mine:
                part = passes[place]
                if way:
                    inputs, prompts = enter(part), part.prompts
                    places = torch.zeros_like(part.ends), part.ends
                else:
                    prompts, n_tokens = part, lengths[part]
                    inputs = {"input_ids": token_ids[part, : int(n_tokens.max())].to(plain.device), "use_cache": False}
                    places = torch.arange(len(part)), n_tokens - 1
                places = tuple(place.to(plain.device) for place in places)
                with answers_alone(plain, places, answer_ids, parts) as of_answers, fast_products():
                    logits = of_answers(llm(**inputs).logits)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                prompts, logits = (prompts, logits) if counts else (prompts[:0], logits[:0])
                yield prompts.to(plain.device), logits


@contextmanager
def merged(llm, rounded=False):
    """Within this context LoRA adapters are part of the weights, which are the same as before to the last bit afterwards.

    Only float32 weights take them in, unless it is asked for: in others the sum is rounded, and the scores change. Nor are adapters
    merged that differ between rows.

    Args:
        llm (torch.nn.Module): a causal LM, with or without PEFT around it.
        rounded (bool): whether weights take them in that are not float32.
    """
    layers = [module for module in llm.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    taken = any(
        (weight.dtype != torch.float32 and not rounded) or layer.merged or layer.disable_adapters
        for layer, weight in zip(layers, weights)
    )
    if not layers or taken or processes.is_divided(llm) or _is_hooked(llm):
        yield
        return
    before = [weight.detach().clone() for weight in weights]
    llm.merge_adapter()
    try:
        yield
    finally:
        llm.unmerge_adapter()
        with torch.no_grad():
            for weight, value in zip(weights, before):
                weight.copy_(value)


def p_yes(llm, input_ids, lengths, answer_ids, budget, device, show_progress=False):
    """P(yes): the two-way softmax of the answer logits (ReLLa, WWW 2024, section 2.3).

    Where a run has several processes, all of them call this, share the forward passes and get all scores.

    Args:
        llm (torch.nn.Module): a causal LM in evaluation mode.
        input_ids (torch.Tensor): right-padded prompts, int64 [n, longest].
        lengths (torch.Tensor): tokens of each prompt, int64 [n].
        answer_ids (tuple of int): tokens of the positive and of the negative answer.
        budget (int): as for `forward_passes`.
        device (torch.device): where the LLM is.
        show_progress (bool): whether to show a bar where it takes longer than a few seconds.

    Returns:
        torch.Tensor: float32 [n], on `device`.
    """
    scores = torch.zeros(len(lengths), dtype=torch.float32, device=device)
    # Scores and merged weights are made outside: what is made in inference mode cannot be changed elsewhere.
    progress = bar(len(lengths) // processes.count(), "Scoring", show_progress and processes.is_first())
    with ONE_AT_A_TIME, torch.no_grad(), merged(llm), torch.inference_mode(), progress as done:
        for places, logits in answer_logits(llm, input_ids, lengths, budget, list(answer_ids), shared=True):
            scores[places] = torch.softmax(logits, dim=-1)[:, 0]
            done.update(len(places))
    processes.add_up([scores])  # each score is that of one process, and 0 in the others
    return scores
