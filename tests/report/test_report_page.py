"""racnn report: every number is the evaluation's, every name is text, and the page asks nothing of any network."""

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import layouts
import pytest
import torch

from racnn.engine.checkpoint import unfinished
from racnn.engine.evaluator import measure_trained
from racnn.engine.photo_rows import photo_rows
from racnn.engine.predictor import load
from racnn.evaluation.charts import reliability, together
from racnn.report.page import MOST_BYTES, _verdict, report_page

NAMES = ["</script><script>alert(1)</script>", "\"quoted\" & '<b>bold</b>'", "🦜 ünïcode", "x" * 200]
SMALL = ["--backbone", "tiny", "--set", "model.weights=null", "--set", "model.view_sizes=[32, 32, 32]"]
SMALL += ["--set", "data.source_size=48", "--set", "data.num_workers=0", "--set", "run.num_preview=0"]


class Page(HTMLParser):
    """What of a page matters here: elements with their attributes, and text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data):
        if self._open not in ("script", "style"):
            self.texts.append(data)

    def handle_endtag(self, tag):
        self._open = ""


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    """Return the folder of a run on photos whose classes and files have names that HTML must not understand."""
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("odd")
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "x0", "y0", "x1", "y1"])
        for label, name in enumerate(NAMES):
            for i in range(9):
                photo = f"{label} <img src=x onerror=alert({i})>.png"
                layouts.write_photo(folder / photo, seed=10 * label + i)
                rows.writerow([photo, name, 4, 5, 20, 21])
    words = ["train", str(folder / "list.csv"), "--out", str(folder / "run"), "--device", "cpu", *SMALL]
    words += ["--set", "data.val_fraction=0.5"]
    done = subprocess.run(
        [sys.executable, "-m", "racnn", *words], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def odd_page(odd_run):
    trained = load(odd_run / "best.pt")
    return report_page(trained, measure_trained(trained, split="val", early_exit=True), title="<i>birds</i>")


def test_every_number_is_the_evaluations(finished, racnn, tmp_path):
    best = finished.folder / "best.pt"
    assert racnn("evaluate", best, "--early-exit", "--split", "val", "--json", tmp_path / "e.json").code == 0
    (finished.folder / "best.early_exit.json").unlink()
    result = racnn("report", finished.folder, "--out", tmp_path / "report.html")
    assert result.code == 0, result.err
    assert str(tmp_path / "report.html") in result.out
    text = (tmp_path / "report.html").read_text()
    expected = json.loads((tmp_path / "e.json").read_text())
    shown = {at["data-key"]: float(at["data-value"]) for _, at in Page(text).elements if "data-key" in at}
    assert {
        "top1.fused",
        "log_prob.scale_1",
        "ece.mean",
        "localisation.region_1.iou",
        "regions.region_2.tl_mean",
    } <= (shown.keys())
    for key, value in shown.items():
        found = expected
        for part in key.split("."):
            found = found[part]
        assert value == pytest.approx(found, abs=1e-9), key
    for key in ("top1.fused", "top1.scale_2"):
        assert re.search(rf'data-key="{key}" data-value="[^"]+">{100 * shown[key]:.1f}', text), (
            "as it is rounded"
        )
    cells = [at for tag, at in Page(text).elements if tag == "rect" and "data-label" in at]
    assert len(cells) == len(expected["confusion"]["counts"])


def test_names_are_text(odd_page):
    page = Page(odd_page)
    assert not [
        at for tag, at in page.elements if tag in ("i", "img") and not at.get("src", "").startswith("data:")
    ]
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    seen = "".join(page.texts)
    assert "<i>birds</i>" in seen
    for name in NAMES[:3]:
        assert name in seen
    found = re.search(r'<script type="application/json" id="photos">(.*?)</script>', odd_page, re.DOTALL)
    photos = json.loads(found[1])
    assert sorted(photos["names"]) == sorted(NAMES)
    assert any("<img src=x" in row[3] for row in photos["rows"])


def test_nothing_is_asked_of_a_network(odd_page):
    for tag, attributes in Page(odd_page).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
        assert "srcset" not in attributes
    code = "".join(re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", odd_page, re.DOTALL))
    assert code
    for word in ("url(", "fetch", "//", "XMLHttpRequest", "import", "http"):
        assert word not in code
    assert "default-src 'none'" in odd_page


def test_every_photo_is_there_once_and_every_order_has_every_class(odd_page, odd_run):
    trained = load(odd_run / "best.pt")
    rows = list(photo_rows(trained, measure_trained(trained, split="val")))
    found = re.search(r'id="photos">(.*?)</script>', odd_page, re.DOTALL)
    photos = json.loads(found[1])
    told = sorted((row[3], photos["names"][row[0]], photos["names"][row[1]]) for row in photos["rows"])
    assert told == sorted((row.photo, row.label, row.answer.name) for row in rows)
    assert all(row[4].startswith("data:image/webp;base64,") for row in photos["rows"])
    for order in photos["orders"].values():
        assert sorted(order) == list(range(len(NAMES)))


def test_a_page_of_many_photos_stays_small(odd_run, monkeypatch):
    from racnn.report import page

    trained = load(odd_run / "best.pt")
    measured = measure_trained(trained, split="val")
    bare = len(report_page(trained, measured, title="t"))
    monkeypatch.setattr(page, "MOST_BYTES", bare - 2000)
    small = report_page(trained, measured, title="t")
    assert len(small) <= bare - 2000
    assert '",null]' in small.replace(" ", ""), "photos are named without their picture"
    assert MOST_BYTES < 5_000_000


def test_advice_beside_the_run_is_shown_and_what_is_none_is_told(odd_run, racnn, tmp_path):
    run = shutil.copytree(odd_run, tmp_path / "run")
    way = {
        "name": "three whole views", "view_sizes": [32, 32, 32], "multiplications": 3e9, "top1": 0.5,
        "top1_interval": [0.4, 0.6],
    }  # fmt: skip
    (run / "advise.json").write_text(json.dumps({"num_images": 9, "ways": [way]}))
    assert racnn("report", run, "--out", tmp_path / "a.html").code == 0
    assert "three whole views" in (tmp_path / "a.html").read_text()
    (run / "advise.json").write_text('{"ways": [{}]}')
    refused = racnn("report", run, "--out", tmp_path / "b.html")
    assert refused.code == 2
    assert "advise.json" in refused.err
    assert not (tmp_path / "b.html").exists()


def test_photos_that_moved_and_others_are_what_they_are_called(odd_run, racnn, tmp_path):
    moved = shutil.copytree(odd_run.parent, tmp_path / "moved", ignore=shutil.ignore_patterns("run"))
    out = tmp_path / "a.html"
    assert racnn("report", odd_run, "--data", moved / "list.csv", "--out", out).code == 0
    assert "validation photos" in out.read_text()
    assert racnn("report", odd_run, "--split", "all", "--out", out).code == 0
    assert "trained on" in out.read_text()
    layouts.write_photo(tmp_path / "new" / NAMES[2] / "a.png", seed=77)
    refused = racnn("report", odd_run, "--data", tmp_path / "new", "--split", "train", "--out", out)
    assert refused.code == 2
    assert "--split train" in refused.err
    assert racnn("report", odd_run, "--data", tmp_path / "new", "--out", out).code == 0
    assert "0 of the 1 photos are photos that the network was trained on" in out.read_text()


def test_networks_of_one_look_and_of_other_families_get_a_report(short, racnn, tmp_path):
    from racnn.engine.trainer import fit

    fit(short(tmp_path / "run", model__view_sizes=[32]), device=torch.device("cpu"))
    assert racnn("report", tmp_path / "run", "--out", tmp_path / "one.html", "--split", "test").code == 0
    text = (tmp_path / "one.html").read_text()
    assert "It looks once" in text
    assert "NaN" not in text


def test_a_run_that_has_not_come_to_its_end_says_so(finished, racnn, tmp_path):
    out = tmp_path / "report.html"
    assert racnn("report", finished.folder, "--out", out).code == 0
    assert "has not come to its end" not in out.read_text()
    run = shutil.copytree(finished.folder, tmp_path / "run")
    (run / "previous.pt").replace(run / "last.pt")
    assert racnn("report", run, "--out", out).code == 0
    assert "has not come to its end yet: it is in phase" in out.read_text()
    trained = load(run / "best.pt")
    assert unfinished(run / "last.pt", trained.train_names)
    assert unfinished(run / "last.pt", trained.train_names[1:]) is None, "of another run"
    assert unfinished(run / "none.pt", trained.train_names) is None
    (run / "last.pt").write_bytes(b"")
    (run / "previous.pt").unlink(missing_ok=True)
    assert unfinished(run / "last.pt", trained.train_names) is None


@pytest.mark.parametrize(
    ("sure", "words"), [(0.8, "as sure as it should"), (0.95, "surer"), (0.5, "less sure")]
)
def test_how_sure_it_is_in_words(sure, words):
    assert words in _verdict(sure, (0.75, 0.85))


def test_the_diagram_counts_every_photo():
    confidence = torch.tensor([0.05, 0.09, 0.11, 0.95, 1.0])
    _, bars = reliability(confidence, torch.tensor([False, True, True, True, False]))
    assert [bar["photos"] for bar in bars] == [2, 1, 2]
    assert bars[0]["right"] == 0.5
    assert bars[2]["confidence"] == pytest.approx(0.975)


def test_classes_that_are_confused_stand_together():
    counts = [[0, 0, 9], [0, 3, 5], [3, 0, 4], [1, 4, 6], [2, 2, 3]]
    order = together(counts, 5)
    place = {label: position for position, label in enumerate(order)}
    assert abs(place[0] - place[3]) == abs(place[1] - place[4]) == 1
    assert together([], 2) == [0, 1]


def test_a_browser_shows_it(odd_page, browser, tmp_path):
    """No error, no request, nothing wider than the screen, and a cell opens its photos, at the width of a phone and a desk."""
    (tmp_path / "report.html").write_text(odd_page, encoding="utf-8")
    address = (tmp_path / "report.html").as_uri()
    problems = []
    for width in (360, 1400):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        asked = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wrong = page.locator("#matrix rect[fill='#b3261e']")
        cell = (wrong if wrong.count() else page.locator("#matrix rect")).first
        number = int(cell.locator("title").text_content().rsplit(": ", 1)[1])
        cell.press("Enter")
        assert page.locator("#cell img").count() == number
        for name in ("as listed", "by name", "most mistakes first"):
            page.locator("#order").select_option(name)
        assert [url for url in asked if not url.startswith("data:")] == [address]
    assert not problems


def test_a_run_keeps_its_results_and_curves(finished):
    rows = list(csv.DictReader((finished.folder / "results.csv").open()))
    logged = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in logged if row["kind"] == "val"]
    assert [row["phase"] for row in rows] == [row["phase"] for row in measured]
    assert float(rows[-1]["top1_fused"]) == measured[-1]["top1_fused"]
    root = ET.fromstring((finished.folder / "curves.svg").read_text())
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 4, "three scales and all of them together"
    assert len(lines[0].get("points").split()) == len(measured)
