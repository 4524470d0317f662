"""The house: imports go one way, our keys and their defaults agree, and the wheel holds what the package reads."""

import ast
import inspect
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import recbole_rella
from recbole_rella.config import properties_folder
from recbole_rella.experiments.side_by_side import run_side_by_side
from recbole_rella.experiments.sweep import run_sweep
from recbole_rella.experiments.tuning import tune
from recbole_rella.key_docs import MODELS
from recbole_rella.keys import KEYS
from recbole_rella.serving.diagnosis import diagnose, write_diagnosis
from recbole_rella.serving.explanation import explain, write_explanation
from recbole_rella.serving.export import Export
from recbole_rella.serving.requests import score_file
from recbole_rella.serving.scorer import Scorer
from recbole_rella.version import VERSION

PACKAGE = Path(__file__).parents[1] / "recbole_rella"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses(path, package):
    return any(name == package or name.startswith(package + ".") for name in imports(path))


def room(path):
    return path.relative_to(PACKAGE).as_posix()


# The rooms from the ground up: each imports what stands before it, never what stands behind.
ORDER = """
errors version shipped files processes progress key_rules keys key_docs arguments given pictures tables rows atomic prompt llm
engines retrieval compat config metrics significance run_folder report ahead data model checkpoint predictions trainer
fitted_trainer reads beside register quick_start experiments serving command_line __init__ __main__
""".split()
# Rooms of RecBole's side, and the file elsewhere that knows RecBole.
KNOW_RECBOLE = """
config quick_start register compat metrics trainer fitted_trainer reads beside checkpoint predictions data model experiments
__main__
""".split()
NOT_PLAIN = ("atomic/reading.py",)


def storey(path):
    """The room of a file, by its first name."""
    return room(path).split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=room)
def test_only_some_rooms_know_recbole(path):
    if storey(path) not in KNOW_RECBOLE and room(path) not in NOT_PLAIN:
        assert not uses(path, "recbole"), f"{room(path)} imports recbole"


@pytest.mark.parametrize("path", MODULES, ids=room)
def test_data_moves_down_only(path):
    """A room imports those above it, never one below."""
    for below in ORDER[ORDER.index(storey(path)) + 1 :]:
        assert not uses(path, f"recbole_rella.{below}"), f"{room(path)} imports {below}"


def test_the_template_needs_neither_torch_nor_transformers():
    path = PACKAGE / "prompt" / "template.py"
    assert not uses(path, "torch") and not uses(path, "transformers")


@pytest.mark.parametrize("path", [path for path in MODULES if storey(path) == "rows"], ids=room)
def test_rows_are_plain_numpy(path):
    assert not any(uses(path, package) for package in ("torch", "transformers"))


CONVERTERS = ("convert", "source", "writing", "movielens", "book_crossing")


@pytest.mark.parametrize("name", CONVERTERS)
def test_converting_needs_neither_recbole_nor_torch(name):
    path = PACKAGE / "atomic" / f"{name}.py"
    assert not any(uses(path, package) for package in ("recbole", "torch", "numpy", "pandas"))


def test_every_key_has_a_default_a_rule_and_a_comment():
    texts = [(properties_folder() / "model" / f"{model}.yaml").read_text(encoding="utf-8") for model in reversed(MODELS)]
    text, defaults = "\n".join(reversed(texts)), {name: value for text in texts for name, value in yaml.safe_load(text).items()}
    recbole = {
        "epochs",
        "train_batch_size",
        "eval_batch_size",
        "learner",
        "learning_rate",
        "weight_decay",
        "clip_grad_norm",
        "stopping_step",
        "numerical_features",
        "transform",
        "load_col",
        "filter_inter_by_user_or_item",
        "eval_args",
        "train_neg_sample_args",
        "metrics",
        "valid_metric",
        "embedding_size",
        "mlp_hidden_size",
        "dropout_prob",
    }
    assert set(defaults) - recbole == set(KEYS)
    for key, known in KEYS.items():
        assert known.rule(defaults[key]) is None, key
        place = next(place for place, line in enumerate(text.splitlines()) if line.startswith(f"{key}:"))
        assert any("# (" in line for line in text.splitlines()[place - 1 : place + 1]), key


PUBLIC = (
    *(getattr(recbole_rella, name) for name in recbole_rella.__all__),
    *(function for of in (Scorer, Export) for name, function in vars(of).items() if name == "__init__" or name[0] != "_"),
    *(explain, write_explanation, diagnose, write_diagnosis, score_file, run_side_by_side, run_sweep, tune),
)


@pytest.mark.parametrize("public", [getattr(found, "fget", None) or getattr(found, "__func__", found) for found in PUBLIC])
def test_the_public_api_has_type_hints(public):
    """Which .ci/run lets a type checker compare with what is done."""
    signature = inspect.signature(public)
    names = [name for name in signature.parameters if name not in ("self", "cls")]
    assert set(names) <= set(public.__annotations__) and signature.return_annotation is not inspect.Signature.empty


@pytest.mark.slow
def test_the_wheel_holds_the_properties(tmp_path):
    root = PACKAGE.parent
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"recbole_rella-{VERSION}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"recbole_rella/properties/{p.relative_to(root / 'properties').as_posix()}"
        for p in (root / "properties").rglob("*")
        if p.is_file()
    }
    assert {Path(name).suffix for name in wanted} == {".yaml", ".jinja", ".hyper"} and wanted <= names
    assert {f"recbole_rella/{room(path)}" for path in MODULES} | {"recbole_rella/py.typed"} <= names


@pytest.mark.slow
def test_the_installed_package_finds_its_properties(tmp_path):
    """From another folder, where the checkout is not on the path: installed from a wheel the files lie elsewhere."""
    code = "import recbole_rella; from recbole.config import Config; print(Config('ReLLa', 'ml-100k')['prompt_noun'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.split()[-1] == "movie", done.stderr
