"""racnn serve: what programs and people are answered, and what is refused."""

import io
import re
import shutil
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from racnn.data.marks import Marks
from racnn.engine.predictor import load

pytest.importorskip("fastapi", reason="needs the extra serve")
from httpx import Client
from starlette.testclient import TestClient

from racnn.cli_serve import _listen
from racnn.errors import ConfigError
from racnn.serve import app as module

LOCAL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def network(finished):
    return load(finished.folder / "best.pt")


@pytest.fixture(scope="module")
def client(network):
    return TestClient(
        module.create_app(network, name="run/best.pt", hosts=["Birds.example.org"]), base_url=LOCAL
    )


@pytest.fixture(scope="module")
def marks(network):
    """One mark a class, which no other has."""
    names = tuple(network.class_names)
    return Marks(names, tuple(f"sign: of {name}" for name in names), np.eye(len(names)))


@pytest.fixture
def served(network, marks):
    """Serve for real; return the address."""
    import uvicorn

    listening = _listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(module.create_app(network, name="run", marks=marks), log_level="warning")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join(timeout=20)


def photo(size=(90, 60), seed=0, format="PNG", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=format, **options)
    return file.getvalue()


def bomb(width=20_000, height=20_000):
    """Return the start of a PNG that claims so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def ask(client, content, **options):
    return client.post("/predict", files={"photo": ("a.png", content)}, **options)


def test_it_answers_as_predict_does(client, network):
    content = photo()
    found = ask(client, content)
    assert found.status_code == 200
    with Image.open(io.BytesIO(content)) as image:
        wanted = network.predict(image, top=5).to_dict()
    assert found.json() == wanted
    assert len(ask(client, content, params={"top": 2}).json()["top"]) == 2
    assert len(ask(client, content, params={"top": 1, "pictures": 1}).json()["top"]) == 1
    for top in ("abc", 0, 51):
        refused = ask(client, content, params={"top": top})
        assert refused.status_code == 422
        assert refused.json()["error"].startswith("top: ")
    assert client.get("/health").json()["network"] == "run/best.pt"


def test_the_page_gets_pictures_too(client):
    found = ask(client, photo(), params={"pictures": 1}).json()
    assert found["size"] == [90, 60]
    for text in (found["photo"], *found["views"], *found["why"]):
        assert text.startswith("data:image/webp;base64,")
    assert len(found["views"]) == len(found["why"]) == 3
    assert found["against"] == found["top"][1]["name"]


def test_marks_are_told_where_they_are_known(client, network, marks):
    app = module.create_app(network, name="run", marks=marks)
    found = ask(TestClient(app, base_url=LOCAL), photo(), params={"top": 1}).json()
    assert len(found["top"]) == 1
    best = found["top"][0]["name"]
    assert found["marks"]["usually"] == [{"name": f"sign: of {best}", "share": 1.0, "other": 0.0}]
    assert found["marks"]["against"] == ask(client, photo()).json()["top"][1]["name"]
    assert "marks" not in ask(client, photo()).json()


def test_a_photo_is_turned_upright(client):
    turned = Image.Exif()
    turned[0x0112] = 6
    found = ask(client, photo(format="JPEG", exif=turned.tobytes()), params={"pictures": 1}).json()
    assert found["size"] == [60, 90]


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"just a text", 422, "cannot be read as a photo: no picture of a known kind"),
        (b"", 422, "the photo is empty"),
        (bomb(), 422, "400000000 pixels"),
        (bomb(9_000, 9_000), 422, "expected at most 64000000 pixels, the header says 9000x9000"),
        (photo(format="JPEG")[:900], 422, "cannot be read as a photo"),
        (photo((9, 20_000)), 422, "expected at most 16384 pixels a side, found 9x20000"),
        (b"\xff" * 21_000_000, 413, "larger than 20 MB"),
    ],
    ids=["a text", "nothing", "400 megapixels", "81 megapixels", "a cut JPEG", "a thread", "21 MB"],
)  # fmt: skip
def test_what_is_no_photo_gets_a_sentence(content, code, words, client):
    found = ask(client, content)
    assert found.status_code == code
    assert words in found.json()["error"]
    assert "BytesIO" not in found.json()["error"], "no places in memory"


@pytest.mark.parametrize(
    "sent",
    [{"content": b"abc"}, {"data": {"photo": "x"}}, {"files": {"other": photo()}}, {}, {"json": {"photo": 1}},
     {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
     {"content": b"zz", "headers": {"content-type": "multipart/form-data"}}],
    ids=["bytes", "a text field", "another field", "nothing", "json", "a torn form", "no boundary"],
)  # fmt: skip
def test_what_is_no_form_gets_a_sentence(sent, client):
    found = client.post("/predict", **sent)
    assert found.status_code == 400
    assert "'photo'" in found.json()["error"]


def test_a_body_that_does_not_say_its_length_is_cut_off(client):
    def endless():
        yield b'--x\r\ncontent-disposition: form-data; name="photo"; filename="a"\r\n\r\n'
        for _ in range(60):
            yield b"\xff" * 1_000_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    found = client.post("/predict", content=endless(), headers=headers)
    assert found.status_code == 413


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.1.evil.example"]
)
def test_another_host_is_refused(host, client):
    for path in ("/", "/health"):
        assert client.get(path, headers={"host": host}).status_code == 421
    assert client.post("/predict", files={"photo": photo()}, headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "127.0.0.1",
        "[::1]",
        "[::1]:8000",
        "192.168.1.7:80",
        "birds.example.org",
    ],
)
def test_its_own_names_are_answered(host, client):
    assert client.get("/health", headers={"host": host}).status_code == 200


def test_pages_of_other_sites_are_refused(client):
    for site, code in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert client.get("/health", headers={"sec-fetch-site": site}).status_code == code
    for origin, code in (("http://evil.example", 403), ("null", 403), (LOCAL, 200)):  # of older browsers
        assert client.get("/health", headers={"origin": origin}).status_code == code


def test_pages_say_what_they_may_load_and_nothing_is_kept(client):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        found = client.get(path)
        assert found.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in found.headers["content-security-policy"]
        assert found.headers["cache-control"] == "no-store"
        for word in ("http://", "https://", "//cdn", "url("):
            assert word not in found.text.replace("http://www.w3.org/2000/svg", "")
    assert client.get("/docs").status_code == 404
    assert client.get("/../app.py").status_code == 404


def test_many_at_once_are_all_answered_one_after_the_other(network, monkeypatch):
    at_once, most, lock = 0, 0, threading.Lock()
    plain = module._answer

    def counted(*args):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        try:
            return plain(*args)
        finally:
            with lock:
                at_once -= 1

    monkeypatch.setattr(module, "_answer", counted)
    with (
        TestClient(module.create_app(network, name="n"), base_url=LOCAL) as together,
        ThreadPoolExecutor(32) as pool,
    ):
        found = list(pool.map(lambda i: ask(together, photo(seed=i)), range(32)))
    assert {each.status_code for each in found} == {200}
    assert most == 1
    assert len({each.text for each in found}) > 1


def test_what_fails_inside_is_an_answer_with_all_headers(network, monkeypatch):
    def fails(*_):
        raise AssertionError

    monkeypatch.setattr(module, "_answer", fails)
    found = ask(TestClient(module.create_app(network, name="n"), base_url=LOCAL), photo())
    assert found.status_code == 500
    assert "server's log" in found.json()["error"]
    assert found.headers.items() >= {key.lower(): value for key, value in module.HEADERS.items()}.items()


def test_names_that_are_no_text_are_sent(network, monkeypatch):
    monkeypatch.setattr(module, "_answer", lambda *_: {"top": [{"name": "bad\udcff"}]})
    found = ask(TestClient(module.create_app(network, name="n"), base_url=LOCAL), photo())
    assert found.json()["top"][0]["name"] == "bad\udcff"


def test_levels_that_are_damaged_are_told(finished, racnn, tmp_path):
    checkpoint = Path(shutil.copy(finished.folder / "best.pt", tmp_path))
    (tmp_path / "best.levels.json").write_text("{")
    refused = racnn("serve", checkpoint, "--port", 0)
    assert refused.code == 2
    assert "best.levels.json" in refused.err


def test_more_than_can_wait_are_told(network, monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 0)
    found = ask(TestClient(module.create_app(network, name="n"), base_url=LOCAL), photo())
    assert found.status_code == 503
    assert "try again" in found.json()["error"]


def test_a_slow_sender_is_given_up(network, monkeypatch):
    monkeypatch.setattr(module, "READING", 0.0)
    found = ask(TestClient(module.create_app(network, name="n"), base_url=LOCAL), photo())
    assert found.status_code in (200, 408)
    monkeypatch.setattr(module, "_photo_of", lambda _: __import__("asyncio").sleep(1))
    found = ask(TestClient(module.create_app(network, name="n"), base_url=LOCAL), photo())
    assert found.status_code == 408


def test_nobody_waits_for_a_slow_sender(served):
    with socket.create_connection(served) as slow:
        slow.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        time.sleep(0.2)
        with Client(base_url=f"http://127.0.0.1:{served[1]}", timeout=20) as other:
            assert other.post("/predict", files={"photo": photo()}).status_code == 200


def test_a_port_that_is_taken(racnn, finished):
    taken = _listen("127.0.0.1", 0)
    try:
        with pytest.raises(ConfigError, match=r"--port \d+: .*choose another"):
            _listen("127.0.0.1", taken.getsockname()[1])
        refused = racnn("serve", finished.folder / "best.pt", "--port", taken.getsockname()[1])
        assert refused.code == 2
        assert "--port" in refused.err
    finally:
        taken.close()
    refused = racnn("serve", finished.folder / "best.pt", "--host", "no such host")
    assert refused.code == 2
    assert "--host" in refused.err


def test_a_browser_shows_it(served, browser, tmp_path):
    """Drop, choose, paste; three views and the answer; what is no photo gets a sentence; no error, no request elsewhere."""
    url = f"http://127.0.0.1:{served[1]}/"
    for name, content in (
        ("good.png", photo()),
        ("text.txt", b"a text"),
        ("cut.jpg", photo(format="JPEG")[:900]),
    ):
        (tmp_path / name).write_bytes(content)
    give = """async ([kind, name]) => {
        const canvas = document.createElement("canvas");
        canvas.width = 60; canvas.height = 40;
        canvas.getContext("2d").fillRect(5, 5, 20, 20);
        const blob = await new Promise(done => canvas.toBlob(done));
        const data = new DataTransfer();
        data.items.add(new File([blob], name, { type: "image/png" }));
        const event = kind === "drop" ? new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true })
                                      : new ClipboardEvent(kind, { clipboardData: data, bubbles: true });
        document.body.dispatchEvent(event);
    }"""
    problems, asked = [], []
    for width in (360, 1400):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.set_input_files("#file", tmp_path / "good.png")
        page.locator("#views img").nth(2).wait_for(timeout=20_000)
        assert page.locator("#photo rect").count() == 4
        assert page.locator("#top li").count() == 5
        best, second = (page.locator("#top li span:first-child").nth(place).inner_text() for place in (0, 1))
        told = f"Rather than {second}, usually: sign: of {best} (100 % against 0)"
        assert page.locator("#marks").inner_text() == told
        first = page.locator("#views img").first.get_attribute("src")
        page.locator("#why").check()
        assert page.locator("#views img").first.get_attribute("src") != first
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for kind in ("drop", "paste"):
            page.evaluate(give, [kind, f"{kind}.png"])
            page.locator("#said", has_text=re.compile(f"^{kind}.png$")).wait_for(timeout=20_000)
        page.evaluate(
            "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer(), bubbles: true}))"
        )
        assert page.locator("#answer").is_visible(), "text that is dropped takes nothing away"
        assert not problems
        for name in ("text.txt", "cut.jpg"):
            page.set_input_files("#file", tmp_path / name)
            page.locator("#said.wrong", has_text="cannot be read as a photo").wait_for(timeout=20_000)
        problems.clear()  # a browser logs each answer that is a refusal
    assert {each.split("?")[0] for each in asked if not each.startswith("data:")} <= {
        url, f"{url}page.css", f"{url}page.js", f"{url}health", f"{url}predict"
    }  # fmt: skip
