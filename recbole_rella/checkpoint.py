"""The state of an interrupted run: what it is made of, how it is kept, and how an interruption waits for the end of a step.

No pickled code: tensors and numbers alone, which ``torch.load(weights_only=True)`` reads.
"""

import random
import signal
import threading
from contextlib import contextmanager

import numpy as np
import torch

from recbole_rella import processes
from recbole_rella.files import replacing
from recbole_rella.run_folder import RunError


def save_state(path, state):
    """Write the state of a run, whole or not at all.

    Args:
        path (pathlib.Path): the file.
        state (dict): tensors, numbers, texts, and lists and dictionaries of these.
    """
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(path):
    """Read what `save_state` wrote; with several processes the first one reads.

    Raises:
        RunError: the file is damaged.
    """

    def read():
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # those of zip files, pickles and the disk: whatever the damage, the remedy is the same
            raise RunError(
                f"resume_from: expected the state of a run in {path}, found one that does not read ({error}). Start the run again."
            ) from error

    return processes.from_first(read)


def random_state(device):
    """The states of the random generators that a run draws from, as plain values and tensors.

    Args:
        device (torch.device): of the run; other GPUs draw nothing for it.
    """
    python = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }


def restore_random(state, device):
    """Put the random generators back to what `random_state` gave; `device` may be another one than it was then."""
    random.setstate((state["python"][0], tuple(state["python"][1]), state["python"][2]))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)


class RemainingBatches:
    """The batches of a DataLoader but for the first few, which an interrupted run has been through."""

    def __init__(self, loader, skip, before_rest):
        self._loader, self._skip, self._before_rest = loader, skip, before_rest
        self.shuffle, self.sampler = loader.shuffle, loader.sampler

    def __iter__(self):
        batches = iter(self._loader)
        for _ in range(self._skip):
            next(batches)
        self._before_rest()
        yield from batches


class Interruption:
    """Ctrl-C, which waits for the end of a training step: what is saved is then that of a whole one, and no step is lost.

    A second Ctrl-C does not wait.
    """

    def __init__(self):
        self._in_step = self._asked = False

    @contextmanager
    def watched(self):
        """Within this context Ctrl-C waits, in the main thread of a program with Python's own handler; else nothing changes."""
        own = signal.default_int_handler
        if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not own:
            yield
            return
        self._in_step = self._asked = False
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, own)

    def _handle(self, number, frame):
        if not self._in_step or self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def begin_step(self):
        """From here on Ctrl-C waits."""
        self._in_step = True

    def end_step(self):
        """Up to here Ctrl-C waited.

        Raises:
            KeyboardInterrupt: it was pressed meanwhile.
        """
        self._in_step = False
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt
