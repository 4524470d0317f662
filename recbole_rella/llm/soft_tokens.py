r"""Soft tokens (SPA of ReLLaX, arXiv 2501.13344; CoLLM, arXiv 2310.19488): vectors in the place of words, made by a projector.

soft(v) = W2 GELU(W1 v + b1) + b2, with W1: D -> H and W2: H -> H, where H is the width of the LLM. v is the vector of an item or a
user in a conventional model (data/crm.py), or the numbers of a row's history (rows/features.py). What belongs to a row is one soft
token, the sum of a projector's for each kind: so it does not matter to one kind how many there are. Which prompts have which soft
tokens, and their ids, is prompt/soft_places.py's.

Hooks on the LLM's input embedding give the ids beyond its vocabulary their vectors. Nothing else of the LLM is touched: not its
head (tied to the embedding or not), not PEFT, not transformers; what it gets are still token ids, so that trees of prompts work.
"""

from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from recbole_rella import processes
from recbole_rella.errors import RellaError
from recbole_rella.llm.rellax import BesideAdapters, different_rows
from recbole_rella.llm.scoring import ONE_AT_A_TIME
from recbole_rella.prompt.soft_places import OF_ITEMS, OF_ROWS

SOFT_TOKENS = "soft_tokens.safetensors"
_ITEMS = "item"


class SoftTokenError(RellaError):
    """Soft tokens do not fit the LLM, or a file does not hold them."""


class Projector(nn.Sequential):
    """A vector -> the embedding of a soft token.

    Args:
        size (int), width (int): D and H.
        init (str): xavier (weights by Xavier's rule, biases 0: ReLLaX as it was meant) or zero: W2 is 0, so that whatever the
            vector is, the soft token is b2, at first `neutral`.
        neutral (torch.Tensor): an embedding of the LLM, float [H].
    """

    def __init__(self, size, width, init, neutral):
        super().__init__(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))
        for layer in (self[0], self[2]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if init == "zero":
            nn.init.zeros_(self[2].weight)
            with torch.no_grad():
                self[2].bias.copy_(neutral)


class SoftTokens(BesideAdapters):
    """The soft tokens of an LLM: tables of vectors, projectors, and the hooks that put them among its embeddings.

    Args:
        llm (transformers.PreTrainedModel): a causal LM, with or without PEFT around it.
        places (SoftPlaces): which soft tokens its prompts have.
        init (str): as for `Projector`.
        neutral (Mapping): item, row -> token id, whose embedding is neutral for what stands for an item or belongs to a row.
        items (numpy.ndarray or None): vectors of items, float32 [items, D].
        sizes (Mapping): kind of what belongs to a row (user, row) -> size of its vectors, where the soft token tells it.
        history (EncodedNumbers or None): of the numbers of a row, where they have one.

    Attributes:
        first (int): the id of the first soft token: ids of the LLM's vocabulary are below it.

    Raises:
        SoftTokenError: the LLM's embedding is of another kind, or has more tokens than `places` counts.
    """

    file, error = SOFT_TOKENS, SoftTokenError
    what = "the soft tokens of this LLM and of these spa_* and history_fields settings"

    def __init__(self, llm, places, init, neutral, items=None, sizes=MappingProxyType({}), history=None):
        super().__init__()
        embedding = llm.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding) or embedding.num_embeddings > places.first:
            raise SoftTokenError(
                f"spa_tokens: expected an LLM with an embedding of at most {places.first} tokens, found {embedding}."
            )
        self.first, self._ends = places.first, places.of_row
        width = embedding.embedding_dim
        with torch.no_grad(), processes.whole(llm):
            ids = torch.tensor([neutral["item"], neutral["row"]], device=embedding.weight.device)
            of_item, of_row = embedding(ids).float().cpu()
        self.history = history
        self._sizes = {kind: len(history.mean) if kind == "history" else sizes[kind] for kind in OF_ROWS if kind in places.of}
        inputs = {kind: history.size if kind == "history" else size for kind, size in self._sizes.items()}
        # One of the sum's parts is neutral at first, the one that may have been pretrained (`take`); the others add nothing.
        neutral_kind = "history" if "history" in inputs else next(iter(inputs), None)
        neutrals = {_ITEMS: of_item, neutral_kind: of_row}
        self._items = 0
        if set(OF_ITEMS) & set(places.of):
            self.register_buffer("table", torch.from_numpy(items), persistent=False)
            self._items, inputs[_ITEMS] = len(items), items.shape[1]
        self.projectors = nn.ModuleDict(
            {kind: Projector(size, width, init, neutrals.get(kind, torch.zeros_like(of_row))) for kind, size in inputs.items()}
        )
        self._rows, self._seen = None, None
        embedding.register_forward_pre_hook(self._before)
        embedding.register_forward_hook(self._behind)

    @contextmanager
    def numbered(self, token_ids, vectors=MappingProxyType({})):
        """Within this context the LLM takes these prompts; other threads wait.

        Args:
            token_ids (torch.Tensor): as prompts have them, int64 [n, longest].
            vectors (Mapping): kind of what belongs to their rows -> float32 torch.Tensor [n, D], on the CPU.

        Yields:
            torch.Tensor: the prompts, in which the soft tokens of rows share an id where they share the vectors.
        """
        different = None
        if self._sizes and self._sizes.keys() <= vectors.keys():
            different, which = different_rows(torch.cat([vectors[kind] for kind in self._sizes], dim=1))
            token_ids = torch.where(token_ids == self._ends[0], self.first + self._items + which[:, None], token_ids)
        with ONE_AT_A_TIME, self.one_each(different):
            yield token_ids

    @contextmanager
    def one_each(self, vectors):
        """Within this context the ids from that of the first soft token of a row on stand for these vectors, one after the other.

        Args:
            vectors (torch.Tensor or None): float32 [m, D], those of all kinds side by side; None where prompts are told of none.
        """
        before, self._rows = self._rows, vectors
        try:
            yield
        finally:
            self._rows = before

    def _before(self, _, inputs):
        """Ids that the embedding has, in the place of soft tokens."""
        ids, *others = inputs
        soft = ids >= self.first
        self._seen = (ids, soft) if soft.any() else None
        return (ids.masked_fill(soft, 0), *others)

    def _behind(self, embedding, _, output):
        """The embeddings, with those of soft tokens in their places."""
        if self._seen is None:
            if not torch.is_grad_enabled():
                return output
            # Zero, through which a backward pass reaches projectors where all else is frozen: it cannot be left out, as all
            # processes of a divided LLM have to make it.
            return output + sum(parameter[:0].sum() for parameter in self.projectors.parameters())
        (ids, soft), self._seen = self._seen, None
        different, which = torch.unique(ids[soft], return_inverse=True)
        known = 0
        made = output.new_zeros(len(different), output.shape[-1], dtype=torch.float32)
        if self._items:
            of = (different < self.first + self._items).nonzero().squeeze(1)
            known += len(of)
            made = made.index_put((of,), self.projectors[_ITEMS](self.table[different[of] - self.first]))
        if self._rows is not None:
            begin = self.first + self._items
            of = ((different >= begin) & (different < begin + len(self._rows))).nonzero().squeeze(1)
            known += len(of)
            made = made.index_put((of,), self._of_rows(self._rows.to(output.device)[different[of] - begin]))
        if known < len(different):
            raise SoftTokenError("Prompts with soft tokens of rows go through an LLM within `SoftTokens.numbered`.")
        return output.masked_scatter(soft[..., None], made[which].to(output.dtype))

    def _of_rows(self, vectors):
        """The embeddings of soft tokens of rows, float32 [m, D] -> [m, H]."""
        parts = dict(zip(self._sizes, vectors.split(list(self._sizes.values()), dim=1)))
        return sum(self.projectors[kind](self.history(part) if kind == "history" else part) for kind, part in parts.items())

    def of_items(self):
        """The embeddings of the soft tokens of all items, float32 [items, H]; none where they have none."""
        with torch.no_grad():
            return self.projectors[_ITEMS](self.table) if self._items else None

    def take(self, folder):
        """Begin as the soft tokens that an LLM was pretrained with, where its folder has them (llm/mini.py).

        Args:
            folder (str or pathlib.Path or None): of the LLM.

        Raises:
            SoftTokenError: the file is damaged.
        """
        if folder is None or not (Path(folder) / SOFT_TOKENS).is_file():
            return
        try:
            known, own = load_file(Path(folder) / SOFT_TOKENS), self.state_dict()
        except SafetensorError as error:
            raise SoftTokenError(
                f"llm: expected soft tokens in {Path(folder) / SOFT_TOKENS}, found a damaged file ({error}): copy the folder again."
            ) from error
        fits = {name: tensor for name, tensor in known.items() if name in own and own[name].shape == tensor.shape}
        if set(fits) == set(known):
            self.load_state_dict(fits, strict=False)
