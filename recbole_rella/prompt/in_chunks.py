"""Work over many rows, chunk by chunk: texts and tokens are made in Python, row by row, and so by as many processes as wished.

The processes are those of PyTorch's DataLoader, and their number is RecBole's `worker`, which says the same of its batches.
"""

import torch
from torch.utils.data import DataLoader, Dataset

from recbole_rella.errors import RellaError
from recbole_rella.progress import bar

_ROWS = 2048


class _Chunks(Dataset):
    def __init__(self, function, chunks):
        self._function, self._chunks = function, chunks

    def __len__(self):
        return len(self._chunks)

    def __getitem__(self, place):
        try:
            return self._function(self._chunks[place])
        except RellaError as error:  # what a DataLoader raises again is its traceback in the place of the message
            return error


def _as_it_is(result):
    return result


def in_chunks(function, rows, what, workers=0, show_progress=False):
    """What a function makes of rows, in their order.

    Args:
        function (callable): an array of row_ids -> anything; with `workers` it and its results are pickled.
        rows (numpy.ndarray): int [n].
        what (str): is done, for the bar.
        workers (int): processes; 0 for this one.
        show_progress (bool): whether to show a bar where it takes longer than a few seconds.

    Yields:
        object: of each chunk.

    Raises:
        RellaError: of `function`.
    """
    chunks = [rows[begin : begin + _ROWS] for begin in range(0, len(rows), _ROWS)]
    workers = max(0, min(workers, len(chunks) - 1))
    # A DataLoader draws a number when it begins: of a generator of its own, so that the run goes on as without it.
    loader = DataLoader(
        _Chunks(function, chunks), batch_size=None, num_workers=workers, collate_fn=_as_it_is, generator=torch.Generator()
    )
    with bar(len(rows), what, show_progress) as done:
        for chunk, result in zip(chunks, loader):
            if isinstance(result, RellaError):
                raise result
            done.update(len(chunk))
            yield result
