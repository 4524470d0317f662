"""Pages in a browser without a screen (Chromium in Qt): they render, no script fails, links lead somewhere, light and dark can be
read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_rella import run_recbole_rella
from recbole_rella.experiments.side_by_side import run_side_by_side
from recbole_rella.experiments.sweep import run_sweep
from recbole_rella.report.run_page import write_run_page
from recbole_rella.serving.diagnosis import diagnose, write_diagnosis
from recbole_rella.serving.scorer import Scorer

# What a reader sees, told by the page itself: in each scheme the contrast (WCAG 2) of all text to the paper behind it.
SEEN = """
(() => {
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const colour = text => text.match(/[\\d.]+/g).map(Number);
  const contrast = {};
  for (const scheme of ["light", "dark"]) {
    document.documentElement.style.colorScheme = scheme;
    const paper = light(colour(getComputedStyle(document.body).backgroundColor));
    contrast[scheme] = Math.min(...[...document.querySelectorAll("h1, h2, p, th, td, a, summary, pre, svg text")].map(element => {
      const style = getComputedStyle(element), ink = light(colour(element.closest("svg") ? style.fill : style.color));
      return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    }));
  }
  return JSON.stringify({
    contrast, title: document.title,
    charts: [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().height),
    headings: [...document.querySelectorAll("h2")].map(heading => heading.textContent),
    astray: [...document.querySelectorAll("a")].filter(a => !document.querySelector(a.getAttribute("href"))).length,
    lost: [...document.querySelectorAll("svg use")].filter(use => !document.querySelector(use.getAttribute("xlink:href"))).length,
    wide: document.documentElement.scrollWidth > innerWidth,
    elsewhere: performance.getEntriesByType("resource").length,
  });
})()
"""

BROWSER = """
import sys
from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineCore import QWebEnginePage
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

class Page(QWebEnginePage):
    def javaScriptConsoleMessage(self, level, message, line, source):
        print("console:", message, line, flush=True)

application = QApplication(sys.argv[:1])
view = QWebEngineView()
page = Page(view)
view.setPage(page)
view.resize(1000, 1400)
view.show()

def seen(result):
    print("seen:" + str(result), flush=True)
    application.exit(0)

def loaded(well):
    QTimer.singleShot(300, lambda: page.runJavaScript(sys.argv[2], seen)) if well else application.exit(2)

page.loadFinished.connect(loaded)
page.load(QUrl.fromLocalFile(sys.argv[1]))
QTimer.singleShot(60000, lambda: application.exit(3))
sys.exit(application.exec())
"""


def look_at(path):
    environment = {
        **os.environ,
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu",
        "QTWEBENGINE_DISABLE_SANDBOX": "1",
    }
    command = [sys.executable, "-c", BROWSER, str(Path(path).resolve()), SEEN]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "console:" not in done.stdout, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("seen:"))
    return json.loads(line.removeprefix("seen:"))


def check(seen, title, charts):
    assert seen["title"] == title and len(seen["charts"]) == charts and all(height > 100 for height in seen["charts"])
    assert seen["astray"] == seen["lost"] == seen["elsewhere"] == 0 and not seen["wide"]
    assert min(seen["contrast"].values()) >= 4.5, seen["contrast"]  # WCAG 2, AA


@pytest.mark.slow
def test_pages_in_a_browser(movies, in_this_process):
    if subprocess.run([sys.executable, "-c", "import PyQt6.QtWebEngineWidgets"], capture_output=True).returncode:
        pytest.skip("pip install '.[browser]' brings a browser, where the system has what Qt needs")
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "run_folder": "run"})
    write_diagnosis(diagnose(Scorer.load("run"), "run"), "run/diagnosis")
    seen = look_at(write_run_page("run", Scorer.load("run").dataset))
    check(seen, f"ReLLa on {name}", 4)
    assert seen["headings"][:2] == ["Metrics", "What it reads of a history"] and seen["headings"][-1] == "Most wrong rows"
    *_, folder = run_side_by_side(["Tree", "FM"], name, None, {**tiny, "epochs": 1}, report=lambda _: None)
    check(look_at(folder / "report.html"), f"Tree, FM on {name}", 5)
    _, folder = run_sweep("tree_leaves:2,3", ["Tree"], name, None, tiny, report=lambda _: None)
    check(look_at(folder / "sweep-tree_leaves.html"), f"tree_leaves = 2, 3 on {name}", 1)
