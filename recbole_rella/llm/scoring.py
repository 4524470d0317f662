"""P(yes): the two answer logits at the one position that matters, in batches of similar length.

Prompts are padded on the right. Under causal attention nothing before the padding sees it, so neither an attention mask
nor position ids are needed, and a prompt's score does not depend on its neighbours in the batch (law 3).
"""

from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F


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
def answer_position(llm, positions, token_ids=None):
    """Within this context the LLM's head sees one position a row, and computes all logits or those of some tokens.

    Whatever the LLM does to its logits afterwards (scaling, soft capping) stays in force, as it is done by the LLM.

    Args:
        llm (transformers.PreTrainedModel): a causal LM.
        positions (torch.Tensor): where the answer follows, int64 [n].
        token_ids (list of int, optional): the tokens whose logits are wanted; all by default.

    Yields:
        bool: whether the logits are those of `token_ids` alone. A head that is no plain linear layer gives all.
    """
    head = llm.get_output_embeddings()
    few = token_ids is not None and type(head) is torch.nn.Linear
    own_forward = head.__dict__.get("forward")
    forward = head.forward

    def forward_at_answer(hidden):
        hidden = hidden[torch.arange(len(positions), device=hidden.device), positions.to(hidden.device)][:, None]
        if not few:
            return forward(hidden)
        bias = None if head.bias is None else head.bias[token_ids]
        return F.linear(hidden, head.weight[token_ids], bias)

    head.forward = forward_at_answer
    try:
        yield few
    finally:
        if own_forward is None:
            del head.forward
        else:
            head.forward = own_forward


def answer_logits(llm, input_ids, lengths, token_ids=None):
    """Logits after the last token of each prompt, from one forward pass.

    Args:
        llm (torch.nn.Module): a causal LM, with or without PEFT around it.
        input_ids (torch.Tensor): right-padded prompts, int64 [n, longest], on the LLM's device.
        lengths (torch.Tensor): tokens of each prompt, int64 [n].
        token_ids (list of int, optional): the tokens whose logits are wanted; all by default.

    Returns:
        torch.Tensor: float32 [n, len(token_ids) or vocabulary].
    """
    plain = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    with answer_position(plain, lengths - 1, token_ids) as few:
        logits = llm(input_ids=input_ids, use_cache=False).logits[:, 0].float()
    return logits if few or token_ids is None else logits[:, token_ids]


@torch.no_grad()
def p_yes(llm, input_ids, lengths, answer_ids, budget, device):
    """P(yes): the two-way softmax of the answer logits (ReLLa, WWW 2024, section 2.3).

    Args:
        llm (torch.nn.Module): a causal LM in evaluation mode.
        input_ids (torch.Tensor): right-padded prompts, int64 [n, longest].
        lengths (torch.Tensor): tokens of each prompt, int64 [n].
        answer_ids (tuple of int): tokens of the positive and of the negative answer.
        budget (int): tokens that go through the LLM at a time, padding included.
        device (torch.device): where the LLM is.

    Returns:
        torch.Tensor: float32 [n], on `device`.
    """
    scores = torch.empty(len(lengths), dtype=torch.float32, device=device)
    for batch in batches_by_tokens(lengths.cpu().numpy(), budget):
        places = torch.from_numpy(batch)
        n_tokens = lengths.cpu()[places]
        ids = input_ids.cpu()[places, : int(n_tokens.max())].to(device)
        logits = answer_logits(llm, ids, n_tokens.to(device), list(answer_ids))
        scores[places.to(device)] = torch.softmax(logits, dim=-1)[:, 0]
    return scores
