"""Small data sets and small LLMs, made in the tests; no network, no files outside the test's own folder."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from helpers import write_atomic_files, write_llm  # noqa: E402


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """RecBole reads sys.argv and writes log/ and log_tensorboard/ into the working folder."""
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def llms(tmp_path_factory):
    """Factory of tiny checkpoint folders by family, each made once."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = write_llm(tmp_path_factory.mktemp("llm") / family, family)
        return str(made[family])

    return make


@pytest.fixture
def movies(tmp_path):
    """A small data set with signal: users like some genres; 12 users, 30 movies, about 360 rows."""
    random = np.random.default_rng(7)
    genres = ["Comedy", "Drama", "Horror"]
    items = [
        {
            "item_id": str(100 + i),
            "movie_title": f"{genres[i % 3]} Story {i}",
            "release_year": str(1990 + i % 9),
            "class": genres[i % 3],
        }
        for i in range(30)
    ]
    users = [
        {"user_id": str(u), "age": str(20 + u), "gender": "MF"[u % 2], "occupation": ["writer", "doctor"][u % 2]} for u in range(12)
    ]
    rows = []
    for user in range(12):
        for place, item in enumerate(random.permutation(30)):
            likes = item % 3 == user % 3
            rating = int(np.clip(random.normal(4.8 if likes else 2.2, 0.8), 1, 5))
            rows.append(
                {"user_id": str(user), "item_id": str(100 + item), "rating": rating, "timestamp": 1_000_000_000 + place * 37 + user}
            )
    return write_atomic_files(tmp_path / "data", "movies", rows, users, items)


class _Ended:
    """A process that has ended."""

    def __init__(self, code):
        self.code, self.stdin = code, open(os.devnull, "rb")

    def wait(self):
        return self.code

    def kill(self):
        pass


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs of experiments start in this process: the same code, without the seconds that a new one takes to import it.

    tests/experiments/test_side_by_side.py starts real ones.
    """
    from recbole_rella.experiments import child, runs

    class Subprocess:
        PIPE, STDOUT = runs.subprocess.PIPE, runs.subprocess.STDOUT

        @staticmethod
        def Popen(command, **_):  # noqa: N802
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", ["child"])
                return _Ended(child.main(command[-1]))

    monkeypatch.setattr(runs, "subprocess", Subprocess)


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(1)  # tests run beside each other, and two processes with two threads each stand in their own way


def pytest_configure():
    sys.path.insert(0, str(Path(__file__).parent))
