"""The page in a real browser: one headless Chromium start measures it at every width.

A report runs no script, so a harness page shows it in frames of its own origin, measures them and leaves what it found
in its document, which Chromium prints. A server on loopback hands out both pages and keeps what was asked for; no
other name resolves.
"""

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osft.evaluation.forgetting import TaskComparison
from osft.evaluation.pairing import DocumentPair
from osft.evaluation.report.forgetting_report import ForgettingReport
from osft.evaluation.report.page import write_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no headless browser: none of {', '.join(BROWSERS)} is installed"
)

# A phone, a tablet, the two sides of the places where the layout changes, a desktop.
WIDTHS = (390, 640, 641, 768, 1000, 1001, 1280)
FRAME_HEIGHT = 900
START_SECONDS = 120
HARNESS = """<!doctype html><link rel="icon" href="data:,"><style>iframe { border: 0; height: %(height)dpx }</style>
<body>%(frames)s<pre id="result"></pre>
<script>
function overflowing(page) {
  const found = [];
  for (const element of page.querySelectorAll("body, body *")) {
    const box = element.getBoundingClientRect(), style = page.defaultView.getComputedStyle(element);
    const isBeyond = box.width > 0 && (box.right > page.defaultView.innerWidth + 0.5 || box.left < -0.5);
    const room = style.display === "inline" ? 0 : element.clientWidth;
    const isCut = room > 0 && element.scrollWidth > room + 1;
    if (isBeyond || isCut) found.push(element.outerHTML.slice(0, 160));
  }
  return found;
}
function measure(frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  page.querySelectorAll("details").forEach(one => { one.open = true; });
  return {
    page: frame.dataset.page, width: view.innerWidth, scrollWidth: page.documentElement.scrollWidth,
    overflowing: overflowing(page), texts: page.querySelectorAll("pre").length,
    height: page.documentElement.scrollHeight, scripts: page.scripts.length,
    loaded: view.performance.getEntriesByType("resource").map(one => one.name),
    promptsAtEnd: [...page.querySelectorAll(".prompt")].every(box => box.scrollTop === 0),
    longest: Math.max(...[...page.querySelectorAll("pre")].map(one => one.textContent.length)),
    directions: [...page.querySelectorAll("pre")].map(one => view.getComputedStyle(one).direction),
  };
}
addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")];
  document.getElementById("result").textContent = JSON.stringify(frames.map(measure));
});
</script>"""

# Left as the pipelines UI shows it, right without a sandbox.
TWINS = """<!doctype html><link rel="icon" href="data:,">
<style>body { margin: 0 } iframe { border: 0; width: 600px; height: 900px; float: left }</style>
<iframe sandbox src="usual.html"></iframe><iframe src="usual.html"></iframe>"""


@dataclass(frozen=True, kw_only=True)
class Site:
    folder: Path
    profile: Path
    url: str
    requests: list[str] = field(default_factory=list)


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, requests: list[str], **kwargs: Any) -> None:
        self.requests = requests
        super().__init__(*args, **kwargs)

    def log_message(self, *args: Any) -> None:
        self.requests.append(self.path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, requests = tmp_path_factory.mktemp("site"), []
    handler = partial(Handler, requests=requests, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url, profile = f"http://127.0.0.1:{server.server_port}", tmp_path_factory.mktemp("profile")
        yield Site(folder=folder, profile=profile, url=url, requests=requests)
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def measured(
    site: Site,
    make_report: Callable[..., ForgettingReport],
    make_task: Callable[..., TaskComparison],
    make_document: Callable[..., DocumentPair],
) -> list[dict[str, Any]]:
    write_html(make_report(), [make_document(0), make_document(1, change=1.0)], site.folder / "usual.html")
    write_html(*hard_page(make_report, make_task, make_document), site.folder / "hard.html")
    frames = "".join(
        f'<iframe data-page="{page}" src="{page}.html" style="width: {width}px"></iframe>'
        for page in ("usual", "hard")
        for width in WIDTHS
    )
    (site.folder / "harness.html").write_text(HARNESS % {"height": FRAME_HEIGHT, "frames": frames}, encoding="utf-8")
    shown = run_chromium(site, "--dump-dom", f"{site.url}/harness.html")
    result = re.search(r'<pre id="result">(.+?)</pre>', shown, flags=re.DOTALL)
    assert result is not None, shown[-2_000:]
    return json.loads(html.unescape(result.group(1)))


def hard_page(
    make_report: Callable[..., ForgettingReport],
    make_task: Callable[..., TaskComparison],
    make_document: Callable[..., DocumentPair],
) -> tuple[ForgettingReport, list[DocumentPair]]:
    """Return the worst that has to be readable: many tasks, long names, every script, no place to break a line."""
    bare = dict.fromkeys(("ci_low", "ci_high", "loss_upper", "p_value", "p_adjusted"))
    names = [f"mmlu_high_school_government_and_politics_{number}" for number in range(77)]
    arabic = "السؤال: ما هي عاصمة كندا؟ 🇨🇦"
    tasks = [
        *(make_task(task=name, n=1_000_000, lost=100_000, gained=100_000, p_adjusted=0.001) for name in names),
        make_task(task="x" * 200, metric="y" * 200, n=1, base=0.0, tuned=0.0, delta=0.0, **bare),
        make_task(task=arabic, base=123456.7, tuned=1234567.8, delta=-1111111.1, ci_low=-2e6, ci_high=-1e6),
        make_task(task="elements", kind="target"),
    ]
    texts = dict.fromkeys(("prompt", "gold", "base_answer", "tuned_answer"), "z" * 200)
    hostile = '<img src="/stolen.png"><link rel=stylesheet href="/stolen.css"><script src="/stolen.js"></script>'
    documents = [
        make_document(0, task="x" * 200, **texts),
        make_document(1, task="x" * 200, prompt="word " * 1_000, tuned_answer="👩🏽‍🚀" * 50),
        make_document(2, task=arabic, **dict.fromkeys(texts, arabic)),
        make_document(3, task="elements", change=1.0, prompt="line\n" * 1_000, tuned_answer=hostile),
    ]
    values = {"z" * 200: "z" * 200, "nested": {"z" * 200: "z" * 200, "other": 1}, "folder": "/workspace/" + "v" * 150}
    report = make_report(
        base="/workspace/models/" + "v" * 180,
        tuned="w" * 200,
        tasks=tuple(tasks),
        unbounded_tasks=("x" * 200, *names),
        too_few_documents=("x" * 200, *names),
        reasons=("x" * 200,),
        passed=False,
        forgetting_upper=0.6,
        settings={"max_forgetting": 0.05, "min_target_gain": 0.0, "shots": dict.fromkeys(names, 5) | {"own": 0}},
        training=values,
        data=values,
    )
    return report, documents


def run_chromium(site: Site, *arguments: str) -> str:
    """Run the browser once, without any way out but to the site."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        f"--user-data-dir={site.profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        # The pages' time, which waits for what they load; the clock is not waited for.
        "--virtual-time-budget=10000",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def test_nothing_overflows_at_any_width(measured: list[dict[str, Any]]) -> None:
    assert [one["width"] for one in measured] == [*WIDTHS, *WIDTHS]
    assert {(one["page"], one["width"]): one["overflowing"] for one in measured if one["overflowing"]} == {}
    assert [one["scrollWidth"] for one in measured] == [one["width"] for one in measured]


def test_long_texts_are_whole_and_open_at_their_end(measured: list[dict[str, Any]]) -> None:
    hard = [one for one in measured if one["page"] == "hard"]

    assert {one["longest"] for one in hard} == {5_000}
    assert all(one["promptsAtEnd"] for one in hard)


def test_right_to_left_text_is_set_from_the_right(measured: list[dict[str, Any]]) -> None:
    assert all(one["directions"].count("rtl") == 4 for one in measured if one["page"] == "hard")
    assert all("rtl" not in one["directions"] for one in measured if one["page"] == "usual")


def test_nothing_but_the_page_itself_is_loaded(site: Site, measured: list[dict[str, Any]]) -> None:
    assert set(site.requests) == {"/harness.html", "/usual.html", "/hard.html"}
    assert all(one["loaded"] == [] and one["scripts"] == 0 for one in measured)


@pytest.mark.usefixtures("measured")
def test_a_sandboxed_frame_shows_the_page_as_it_is(site: Site) -> None:
    (site.folder / "twins.html").write_text(TWINS, encoding="utf-8")
    picture = site.folder / "twins.png"

    # A picture does not wait for a frame that has a process of its own, as a sandboxed one has since Chromium 126. In
    # its parent's process it is no less sandboxed, and is drawn with it.
    run_chromium(
        site,
        "--disable-features=IsolateSandboxedIframes",
        "--run-all-compositor-stages-before-draw",
        "--window-size=1200,900",
        f"--screenshot={picture}",
        f"{site.url}/twins.html",
    )

    pixels = np.asarray(Image.open(picture).convert("RGB"))
    sandboxed, plain = pixels[:, :600], pixels[:, 600:1200]
    assert (sandboxed != plain).any(axis=-1).mean() < 0.01
    assert len(np.unique(sandboxed.reshape(-1, 3), axis=0)) > 50
