"""Small data sets and small LLMs, made in the tests; no network, no files outside the session's temporary folder.

What takes seconds to import is imported in the fixtures: the process that hands the tests to the workers needs none of it.
"""

import os
import shutil
import sys
from pathlib import Path

# Read when libraries are imported. Workers run beside each other: two with two threads each would stand in their own way.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# Seconds are asked of benchmarks, never of a test: what is slow once, on a machine that does something else, is no fault.
# The examples are the same each time, so that what fails here fails for everybody; --hypothesis-profile=random draws others.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_xdist_auto_num_workers():
    """A worker a core, and no more than memory holds: each takes about a gigabyte."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), 8)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The session's folder, the same one for all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _shared_cache(shared):
    """What is kept is named by what it was made of, so that all tests may share it: equal data, one pretraining."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache, for tests of the cache and those that damage it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """RecBole reads sys.argv and writes log/ and log_tensorboard/ into the working folder."""
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _pages_where_they_are_tested(request, monkeypatch):
    """Hundreds of tests make a run, and its page takes longer than some of them: tests/report has it, and what starts processes."""
    quick_start = sys.modules.get("recbole_rella.quick_start")
    if quick_start is not None and request.path.parent.name != "report":
        monkeypatch.setattr(quick_start, "write_run_page", lambda *_: None)


@pytest.fixture(scope="session")
def llms(shared):
    """Factory of tiny checkpoint folders by family, each made once."""
    from helpers import write_llm

    from recbole_rella.files import lock, replacing_folder

    def make(family):
        folder = shared / "llm" / family
        with lock(folder):
            if not folder.exists():
                with replacing_folder(folder) as temporary:
                    write_llm(temporary, family)
        return str(folder)

    return make


def _write_movies(root):
    """A small data set with signal: users like some genres; 12 users, 30 movies, 360 rows."""
    import numpy as np
    from helpers import write_atomic_files

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
    return write_atomic_files(root, "movies", rows, users, items)


@pytest.fixture
def movies(tmp_path):
    """The small data set, in files of the test's own: (name, settings)."""
    return _write_movies(tmp_path / "data")


@pytest.fixture(scope="session")
def _trained(shared):
    """The folder of one finished run of ReLLa on the small data set."""
    from recbole_rella import run_recbole_rella
    from recbole_rella.files import lock

    folder = shared / "trained"
    with lock(folder), pytest.MonkeyPatch.context() as patch:
        if not list(folder.glob("saved/*/metrics.json")):
            shutil.rmtree(folder, ignore_errors=True)
            name, tiny = _write_movies(folder / "data")
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["test"])
            run_recbole_rella("ReLLa", name, config_dict=tiny)
    (run,) = folder.glob("saved/*")
    return run


@pytest.fixture
def trained_run(_trained):
    """A copy of a finished run, at saved/ReLLa-...; the data set that it names is not the test's own."""
    return Path(shutil.copytree(_trained, Path("saved") / _trained.name))


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


def pytest_configure():
    sys.path.insert(0, str(Path(__file__).parent))
