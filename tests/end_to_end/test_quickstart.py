"""examples/quickstart.py runs top to bottom in an empty folder, and shows what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.mark.slow
def test_the_quickstart(tmp_path):
    done = subprocess.run([sys.executable, str(QUICKSTART)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    table = dict(re.findall(r"^ *(\S+) +[a-z][a-z, ]+ (0\.\d+)", done.stdout, re.M))
    assert {"ReLLa", "with_numbers", "FM+history", "Tree", "Bias"} <= set(table), done.stdout
    assert float(table["with_numbers"]) > 0.7, table
    assert "# reader7-b12: user reader7, item b12" in done.stdout and "The Silent Witness" in done.stdout
    (page,) = tmp_path.glob("saved/*/report.html")
    assert "<title>ReLLa, with_numbers, FM+history, Tree, Bias on books</title>" in page.read_text(encoding="utf-8")
