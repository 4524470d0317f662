"""What takes longer than a few seconds shows a bar; what does not, and what is asked to be silent, shows none."""

from functools import partial

import numpy as np
import pytest
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from recbole_rella import progress
from recbole_rella.llm.backbone import Backbone
from recbole_rella.llm.scoring import p_yes, pad
from recbole_rella.prompt.in_chunks import in_chunks
from recbole_rella.retrieval.encoder import HiddenStateEncoder
from recbole_rella.retrieval.subr import retrieve
from recbole_rella.rows.history import TRAIN, Histories, Rows


def _score(folder, show):
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    ids = pad([[n % 50 for n in range(begin, begin + 9)] for begin in range(7)])
    p_yes(llm, ids, torch.full((7,), 9), (3, 4), 32, torch.device("cpu"), show_progress=show)


def _encode(folder, show):
    HiddenStateEncoder(Backbone(folder, "cpu"), "mean", 16, show).encode([f"film {n}" for n in range(7)])


def _search(_, show):
    n = np.arange(8, dtype=np.int32)
    rows = Rows(np.zeros(8, np.int32), n, n.astype(np.int64), None, None, np.full(8, TRAIN, np.int8))
    vectors = np.eye(8, dtype=np.float32)
    retrieve(vectors, rows.item, Histories(rows, 1), rows.split, rows.user, n[1:], n[1:], 2, show_progress=show)


def _chunks(_, show):
    list(in_chunks(lambda rows: rows, np.arange(7), "Checking", show_progress=show))


@pytest.mark.parametrize(
    ("work", "what"),
    [(_score, "Scoring"), (_encode, "Encoding items"), (_search, "Searching histories"), (_chunks, "Checking")],
)
def test_a_bar_counts_what_is_done(work, what, llms, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PATIENCE", 1e-9)
    monkeypatch.setattr(progress, "tqdm", partial(tqdm, mininterval=0, miniters=1))  # which shows every step
    work(llms("llama"), True)
    shown = capsys.readouterr().err
    assert what in shown and "7/7" in shown
    work(llms("llama"), False)
    assert what not in capsys.readouterr().err
    monkeypatch.setattr(progress, "_PATIENCE", 60)
    work(llms("llama"), True)
    assert what not in capsys.readouterr().err
