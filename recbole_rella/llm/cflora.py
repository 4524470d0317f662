r"""CFLoRA of ReLLaX (arXiv 2501.13344): a matrix between the two of each LoRA adapter, made of what is known of the row.

y = x W0^T + (alpha / r) ((x A^T) G(h)) B^T, with G(h) = reshape(W4 GELU(W3 LayerNorm(h) + b3) + b4), W3: d -> 2 r^2 and
W4: 2 r^2 -> r^2. LoRA is G = I. There is a gate for each adapted module; G is the same at every token of a prompt.

Hooks on lora_A apply G; nothing of PEFT or transformers is patched. Which G a token is under is told by its id: prompts of
different vectors h get ids that differ by a multiple of a step. So a tree of prompts shares no beginning of prompts under different
G, and those under one G (a user's, where h is the user's vector) share theirs. A hook on the LLM's input embedding takes the
multiple off.
"""

from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from recbole_rella.errors import RellaError
from recbole_rella.llm.rellax import BesideAdapters, different_rows
from recbole_rella.llm.scoring import ONE_AT_A_TIME
from recbole_rella.llm.tree_attention import is_recomputed

GATES = "gates.safetensors"


class GateError(RellaError):
    """Gates do not fit the adapters, or a file does not hold them."""


class Gate(nn.Sequential):
    """What is said of a row -> a matrix, float [n, d] -> float [n, r, r].

    Args:
        size (int), r (int): d and r.
        init (str): identity (W4 is 0 and b4 the identity, so that the first step is that of the adapters alone) or paper (Kaiming
            uniform weights, biases 0: G is a small random matrix at first).
    """

    def __init__(self, size, r, init):
        super().__init__(nn.LayerNorm(size), nn.Linear(size, 2 * r * r), nn.GELU(), nn.Linear(2 * r * r, r * r))
        nn.init.zeros_(self[1].bias)
        nn.init.zeros_(self[3].bias)
        if init == "identity":
            nn.init.zeros_(self[3].weight)
            with torch.no_grad():
                self[3].bias.copy_(torch.eye(r).flatten())
        self._r = r

    def forward(self, vectors):
        return super().forward(vectors).view(-1, self._r, self._r)


class Gates(BesideAdapters):
    """The gates of an LLM's adapters, and the hooks that apply them.

    Args:
        llm (peft.PeftModel): with LoRA adapters.
        size (int): of the vectors h.
        init (str): as for `Gate`.
        made_of (torch.nn.Module): raw vectors -> h; applied to each different one.

    Raises:
        GateError: there are no adapters of linear layers, or gradients are checkpointed.
    """

    file, error, what = GATES, GateError, "the gates of these adapters (cflora_*, lora_*)"

    def __init__(self, llm, size, init, made_of):
        super().__init__()
        self.made_of, self.gates = made_of, nn.ModuleDict()
        for name, module in llm.named_modules():
            if isinstance(module, LoraLayer):
                for adapter, down in module.lora_A.items():
                    # Names with dots are not those of a module's attributes.
                    key = name.replace(".", "/")
                    self.gates[key] = Gate(size, module.r[adapter], init)
                    down.register_forward_hook(self._hook(key))
        if not self.gates:
            raise GateError(f"cflora: expected an LLM with LoRA adapters of linear layers, found none in {type(llm).__name__}.")
        if is_recomputed(llm):  # in the backward pass, when `numbered` may be over
            raise GateError(
                "cflora: expected an LLM whose gradients are not checkpointed, found one that computes its layers again in the "
                "backward pass. Leave llm_gradient_checkpointing (gradient_checkpointing of add_lora) at False."
            )
        embedding = llm.get_input_embeddings()
        self._tokens, self._step = embedding.num_embeddings, 1
        self._vectors = self._under = None
        embedding.register_forward_pre_hook(self._take_off, prepend=True)

    @contextmanager
    def numbered(self, token_ids, vectors):
        """Within this context the adapters of the LLM are under the gates of these prompts; other threads wait.

        Args:
            token_ids (torch.Tensor): int64 [n, longest].
            vectors (torch.Tensor): raw ones, float32 [n, D].

        Yields:
            torch.Tensor: the prompts, to be given to the LLM in the place of `token_ids`.
        """
        with ONE_AT_A_TIME:
            before = self._vectors, self._step, self._under
            self._vectors, which = different_rows(vectors)
            self._step = max(self._tokens, int(token_ids.max()) + 1)
            try:
                yield token_ids + self._step * which[:, None]
            finally:
                self._vectors, self._step, self._under = before

    def _take_off(self, _, inputs):
        """The ids as the embedding knows them; which gates they are under, and each of them under which."""
        if self._vectors is None:
            return None
        ids, *others = inputs
        self._under = torch.unique(torch.div(ids, self._step, rounding_mode="floor"), return_inverse=True)
        return (ids % self._step, *others)

    def _hook(self, key):
        def apply(_, __, output):
            if self._vectors is None:
                raise GateError("Prompts go through an LLM with gates within `Gates.numbered`.")
            different, which = self._under
            matrices = self.gates[key](self.made_of(self._vectors.to(output.device)[different])).to(output.dtype)
            if len(different) == 1:
                return output @ matrices[0]
            if len(which) > 1:  # prompts side by side
                return output @ matrices[which[:, 0]]
            return (output[..., None, :] @ matrices[which]).squeeze(-2)

        return apply
