"""What ReLLaX adds to an LLM with LoRA adapters: soft tokens (SPA) and gates (CFLoRA), either or both."""

from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from recbole_rella import processes
from recbole_rella.files import fingerprint, replacing


class EncodedNumbers(nn.Module):
    """Numbers of rows as a projector takes them: piecewise-linear encoding (Gorishniy et al., NeurIPS 2022).

    Counts stand by their logarithm. Of each number there are: its value with mean 0 and deviation 1 over the training rows, 0 where
    there is none; whether there is none; and for each of its BINS, which hold as many training rows each, how much of the bin is
    below it, from -.5 (none) to .5 (all), 0 where there is no number.

    Args:
        names (tuple of str): of the numbers; *_count and days_* are counts.
        rows (numpy.ndarray): numbers of the training rows, float32 [n, F], nan where there is no value.

    Attributes:
        size (int): of an encoding.
    """

    BINS = 16

    def __init__(self, names, rows):
        super().__init__()
        counts = [name.endswith("_count") or name.startswith("days_") for name in names]
        self.size = (2 + self.BINS) * len(names)
        self.register_buffer("counts", torch.tensor(counts, dtype=torch.bool), persistent=False)
        numbers = self._scaled(torch.from_numpy(rows))
        there = ~torch.isnan(numbers)
        count = there.sum(0).clamp(min=1)
        self.register_buffer("mean", numbers.nan_to_num(0.0).sum(0) / count)
        spread = (((numbers - self.mean).nan_to_num(0.0) ** 2).sum(0) / count).sqrt()
        self.register_buffer("deviation", torch.where(spread > 0, spread, torch.ones_like(spread)))
        shares = np.linspace(0, 1, self.BINS + 1)
        known = [column[~np.isnan(column)] for column in numbers.numpy().T]
        edges = [np.quantile(column, shares) if len(column) else np.zeros(len(shares)) for column in known]
        self.register_buffer("edges", torch.tensor(np.array(edges).reshape(len(names), -1), dtype=torch.float32))

    def _scaled(self, numbers):
        return torch.where(self.counts, torch.log1p(numbers.clamp(min=0)), numbers)

    def forward(self, numbers):
        """Float [n, F] -> float [n, size]."""
        missing, scaled = torch.isnan(numbers), self._scaled(numbers)
        values = ((scaled - self.mean) / self.deviation).nan_to_num(0.0)
        # A bin in which all numbers are equal is a step.
        width = (self.edges[:, 1:] - self.edges[:, :-1]).clamp(min=1e-6)
        passed = ((scaled[..., None] - self.edges[:, :-1]) / width).clamp(0, 1) - 0.5
        return torch.cat([values, missing.to(values.dtype), passed.nan_to_num(0.0).flatten(1)], dim=1)


def different_rows(vectors):
    """The different rows of a tensor on the CPU, compared by their bytes: nan equals itself.

    Args:
        vectors (torch.Tensor): float32 [n, D].

    Returns:
        tuple of torch.Tensor: float32 [m, D]; which of them each row is, int64 [n].
    """
    rows = np.ascontiguousarray(vectors.numpy())
    _, one, which = np.unique(rows.view(f"V{rows.itemsize * rows.shape[1]}"), return_index=True, return_inverse=True)
    return torch.from_numpy(rows[one]), torch.from_numpy(which.reshape(-1))


class BesideAdapters(nn.Module):
    """A module whose weights lie in a file of their own beside the adapters; a subclass says which, and what it holds.

    Attributes:
        file (str): its name.
        error (type): of errors, a RellaError.
        what (str): what is in the file, and by which keys, for messages.
    """

    def save(self, folder):
        """Save all weights and buffers that are not made again; whole or not at all.

        Args:
            folder (str or pathlib.Path): of the adapters.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with replacing(Path(folder) / self.file) as temporary:
            save_file(tensors, temporary)

    def load(self, folder):
        """Load what `save` saved.

        Raises:
            RellaError: of the class `error`: the file is not there, is damaged, or holds something else.
        """
        path = Path(folder) / self.file
        try:
            self.load_state_dict(processes.from_first(lambda: load_file(path)))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise self.error(
                f"{path}: expected {self.what}, found none that fit ({' '.join(str(error).split())}). Set these keys as they were "
                "when it was saved; if they are, the file is damaged: copy it again, or tune again."
            ) from error


class Rellax(nn.Module):
    """Soft tokens and gates, to each of which the vectors go that it is made of.

    Args:
        sizes (dict): kind of vector that belongs to a row -> its size, in the order in which `SoftPlaces.vectors` joins them.
        soft (SoftTokens or None), gates (Gates or None): in one LLM.
        gate (str or None): the kind of vector that gates are made of.
    """

    def __init__(self, sizes, soft=None, gates=None, gate=None):
        super().__init__()
        self._sizes, self.soft, self.gates, self._gate = sizes, soft, gates, gate

    @contextmanager
    def numbered(self, token_ids, vectors=None):
        """Within this context the LLM takes these prompts; other threads wait.

        Args:
            token_ids (torch.Tensor): as prompts have them, int64 [n, longest], on the CPU.
            vectors (torch.Tensor or None): of what belongs to their rows, float32 [n, D], as `SoftPlaces.vectors` gives them.

        Yields:
            torch.Tensor: the prompts, to be given to the LLM in the place of `token_ids`.
        """
        parts = {} if vectors is None else dict(zip(self._sizes, vectors.split(list(self._sizes.values()), dim=1)))
        with ExitStack() as stack:
            if self.soft is not None:
                token_ids = stack.enter_context(self.soft.numbered(token_ids, parts))
            if self.gates is not None:
                token_ids = stack.enter_context(self.gates.numbered(token_ids, parts[self._gate]))
            yield token_ids

    def save(self, folder):
        """Save what was trained beside the adapters.

        Args:
            folder (str or pathlib.Path): of the adapters.
        """
        for part in filter(None, (self.soft, self.gates)):
            part.save(folder)

    def load(self, folder):
        """Load what `save` saved.

        Raises:
            RellaError: a file is not there, or does not fit.
        """
        for part in filter(None, (self.soft, self.gates)):
            part.load(folder)


def trained_identity(llm, rellax=None):
    """Names the weights that were trained: those of adapters, soft tokens and gates.

    Args:
        llm (peft.PeftModel): with adapters.
        rellax (Rellax, optional): in it.

    Returns:
        str: 16 hexadecimal digits.
    """
    adapters = {name: parameter for name, parameter in llm.named_parameters() if ".lora_" in name}
    tensors = {**adapters, **({} if rellax is None else rellax.state_dict())}
    return fingerprint(*(part for name, tensor in tensors.items() for part in (name, tensor.detach().float().cpu().numpy())))
