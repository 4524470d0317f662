"""What all engines have in common: they are told of new weights, and proved against transformers before they are trusted."""

from contextlib import nullcontext

import numpy as np
import torch
from scipy.special import expit

from recbole_rella import processes
from recbole_rella.errors import RellaError
from recbole_rella.llm.backbone import without_adapters
from recbole_rella.llm.rellax import trained_identity
from recbole_rella.llm.scoring import ONE_AT_A_TIME, p_yes, pad

# Prompts of a probe, and by how much their scores may differ from those of transformers: other kernels sum in another order.
_PROBED, _FLOAT32, _HALF = 8, 1e-4, 0.03
_BUDGET = 2048


class EngineError(RellaError):
    """An engine cannot be had, does not answer, or scores otherwise than transformers does; the message says why."""


class Engine:
    """Scores prompts by another program. A subclass says how weights get there, and how it is asked.

    Args:
        llm (peft.PeftModel): whose scores are wanted, in evaluation mode, its adapters as they are when it is asked.
        answer_ids (tuple of int): tokens of the positive and of the negative answer.

    Attributes:
        name (str): for messages.
    """

    name = "engine"

    def __init__(self, llm, answer_ids):
        self.llm, self.answer_ids = llm, tuple(answer_ids)
        self._weights = None

    def told(self):
        """A few words on how fast it answers, str; empty where there is nothing to say."""
        return ""

    def p_yes(self, ids, rellax=None):
        """P(yes) of prompts. Where a run has several processes, all of them call this, and the first asks.

        Args:
            ids (list of list of int): token ids.
            rellax (Rellax, optional): whose soft tokens of items are among them.

        Returns:
            numpy.ndarray: float32 [n].

        Raises:
            EngineError: it cannot be asked, or its scores are not those of transformers.
        """
        if not ids:
            return np.empty(0, dtype=np.float32)
        with ONE_AT_A_TIME:  # what an engine has, and what was proved, belong together
            weights, proved = trained_identity(self.llm, rellax), self._weights
            self._weights = None  # of an engine that is left half way nothing is known
            if weights != proved:
                self._expect(ids, rellax)
            scores = processes.from_first(lambda: self._of_first(ids, rellax, weights, weights == proved))
            self._weights = weights
            return scores

    def _of_first(self, ids, rellax, weights, is_proved):
        if not is_proved:
            self._take(rellax, weights)
            self._prove()
        # Neighbours share beginnings, which engines compute once.
        order = sorted(range(len(ids)), key=ids.__getitem__)
        scores = np.empty(len(ids), dtype=np.float32)
        scores[order] = self._ask([ids[place] for place in order])
        return scores

    def _take(self, rellax, weights):
        """Bring the weights as they are now to the engine; `weights` (str) names them."""
        raise NotImplementedError

    def _ask(self, ids):
        """P(yes) of prompts, float32 [n]."""
        raise NotImplementedError

    def _expect(self, ids, rellax):
        """Compute what the engine must give for a few prompts, of all lengths."""
        by_length = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        places = np.unique(np.linspace(0, len(ids) - 1, _PROBED).astype(int))
        self._probe = [ids[by_length[place]] for place in places]
        self._expected = self._by_transformers(rellax)
        with without_adapters(self.llm):
            self._without = self._by_transformers(rellax)
        self._bound = _FLOAT32 if self.llm.dtype == torch.float32 else _HALF

    def _prove(self):
        """Compare the engine with what is expected of it."""
        self._compare(self._ask(self._probe), self.name)

    def _by_transformers(self, rellax):
        lengths = torch.tensor([len(prompt) for prompt in self._probe])
        padded, device = pad(self._probe), self.llm.device
        with nullcontext(padded) if rellax is None else rellax.numbered(padded) as padded:
            return p_yes(self.llm, padded, lengths, self.answer_ids, _BUDGET, device).cpu().numpy()

    def _compare(self, found, name):
        """Raise an EngineError where scores of the probe are not as expected; it says what they look like."""
        difference = np.abs(np.asarray(found) - self._expected).max()
        if difference <= self._bound:
            return
        if np.abs(found - self._without).max() <= self._bound:
            why = (
                "They are those of the LLM without the adapters of this run. Serve the folder that --export writes, or start the "
                "server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, where it reads the run folder."
            )
        elif difference <= _HALF:
            why = f"So little is another dtype, or a quantized LLM; the run has {str(self.llm.dtype).removeprefix('torch.')}."
        else:
            why = "It has another LLM, another revision, or the adapters of another run."
        worst = int(np.abs(found - self._expected).argmax())
        raise EngineError(
            f"scoring_engine: expected scores of {name} that differ from those of transformers by at most {self._bound:g}, found "
            f"{difference:.2g} among {len(self._probe)} prompts ({found[worst]:.4f} in the place of {self._expected[worst]:.4f}). "
            f"{why}"
        )


def two_way(yes, no):
    """P(yes) of two log-probabilities, or logits, arrays of float64."""
    return expit(np.asarray(yes) - np.asarray(no))
