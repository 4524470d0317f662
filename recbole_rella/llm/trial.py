"""What scores an LLM otherwise than its own forward pass is tried once beside it, on a few tokens, before it is used.

LLMs are built in more ways than can be known here. One whose logits come out otherwise, or that raises, is scored without it.
"""

import logging
import weakref

import numpy as np
import torch

logger = logging.getLogger(__name__)

_LENGTHS = (12, 12, 9)
_problems = weakref.WeakKeyDictionary()  # LLM -> {what was tried: why it cannot be used, or None}
_said = weakref.WeakKeyDictionary()  # LLM -> what the log says of it


def problem(llm, what, logits, with_gradients=False, beyond=0):
    """Why an LLM cannot be scored in some way, found by trying it once.

    Args:
        llm (transformers.PreTrainedModel): a causal LM.
        what (hashable): names the way, whose outcome is kept as long as the LLM.
        logits (callable): right-padded prompts, int64 [n, longest], and their lengths, int64 [n], on the CPU -> logits after the
            last token of each prompt in that way, float [n, vocabulary]. The LLM is in evaluation mode.
        with_gradients (bool): whether the gradients of what is trained must agree, too.
        beyond (int): tokens with which all prompts of the trial begin, where it is longer ones that may come out otherwise.

    Returns:
        str or None: None where the logits are those of each prompt alone.
    """
    known = _problems.setdefault(llm, {})
    if what not in known:
        known[what] = _try(llm, logits, with_gradients, beyond)
        logger.debug("%s, %s: %s", type(llm).__name__, what, known[what] or "agrees")
    return known[what]


def say_once(llm, message):
    """Warn of what an LLM cannot do, once as long as the LLM is there."""
    said = _said.setdefault(llm, set())
    if message not in said:
        logger.warning("%s %s", type(llm).__name__, message)
        said.add(message)


def _try(llm, logits, with_gradients, beyond):
    vocabulary, lengths = llm.get_input_embeddings().weight.shape[0], torch.tensor(_LENGTHS) + beyond
    tokens = torch.from_numpy(np.random.default_rng(0).integers(vocabulary, size=(len(lengths), int(lengths.max()))))
    tokens[1, : beyond + 7], tokens[2, : beyond + 4] = tokens[0, : beyond + 7], tokens[0, : beyond + 4]
    tolerance = 1e-4 if llm.dtype in (torch.float32, torch.float64) else 0.05
    trained = [p for p in llm.parameters() if p.requires_grad] if with_gradients else []
    trains = llm.training
    llm.eval()
    try:
        with torch.set_grad_enabled(with_gradients):
            found = _with_gradients(logits(tokens, lengths).float(), trained)
            rows = [row[None, :n].to(llm.device) for row, n in zip(tokens, lengths.tolist())]
            alone = torch.cat([llm(input_ids=row, use_cache=False).logits[:, -1].float() for row in rows])
            expected = _with_gradients(alone, trained)
    except Exception as error:  # layers, attention functions and compilers raise whatever they like; every one of them means no
        return f"{type(error).__name__}: {error}".split("\n")[0]
    finally:
        llm.train(trains)
    agree = all(torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max())) for a, b in zip(found, expected))
    return None if agree else "it gives other logits or gradients" if trained else "it gives other logits"


def _with_gradients(logits, trained):
    if not trained:
        return [logits.detach()]
    return [logits.detach(), *(gradient.float() for gradient in torch.autograd.grad(logits.square().sum(), trained))]
