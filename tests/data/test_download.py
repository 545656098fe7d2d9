"""A download ends with the right file or says why not, and no archive writes outside its folder."""

import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from racnn.data.download import Archive, check_archive, fetch, place, unpack
from racnn.errors import DataError

CONTENT = bytes(range(256)) * 4000  # more than one chunk is not needed: the server stops where it is told
PAGE = b"<!DOCTYPE html><html>please log in</html>"


class Server:
    """A file server on 127.0.0.1 that can fail as real ones do."""

    def __init__(self):
        self.content, self.status, self.stop_after, self.ranges, self.asked = CONTENT, 200, None, True, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.headers.get("Range"))
                if outer.status != 200:
                    self.send_error(outer.status)
                    return
                start = 0
                if self.headers.get("Range") and outer.ranges:
                    start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                    if start >= len(outer.content):
                        self.send_error(416)
                        return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if outer.stop_after is None else body[: outer.stop_after])

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/birds.tgz"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def archive_of(content=CONTENT, url="http://127.0.0.1/none"):
    return Archive("birds.tgz", url, len(content), hashlib.sha256(content).hexdigest())


def test_a_download_is_the_file(server, tmp_path):
    path = fetch(archive_of(url=server.url), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir()] == ["birds.tgz"]
    server.status = 500
    assert fetch(archive_of(url=server.url), tmp_path) == path  # it is there and is not asked for again


def test_a_download_that_broke_off_goes_on(server, tmp_path):
    archive, server.stop_after = archive_of(url=server.url), 300_000
    with pytest.raises(DataError, match=r"birds\.tgz"):
        fetch(archive, tmp_path)
    part = tmp_path / "birds.tgz.part"
    assert 0 < part.stat().st_size <= 300_000
    have = part.stat().st_size
    server.stop_after = None
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={have}-"]
    assert not part.exists()


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    (tmp_path / "birds.tgz.part").write_bytes(b"x" * 1000)
    server.ranges = False
    assert fetch(archive_of(url=server.url), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_complete_is_only_checked(server, tmp_path):
    (tmp_path / "birds.tgz.part").write_bytes(CONTENT)
    assert fetch(archive_of(url=server.url), tmp_path).read_bytes() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_says_what_to_fetch_by_hand(status, server, tmp_path):
    server.status = status
    with pytest.raises(
        DataError, match=rf"answers {status} .*; fetch birds\.tgz by hand and pass it with --from"
    ):
        fetch(archive_of(url=server.url), tmp_path)


@pytest.mark.parametrize(
    ("folder", "said"), [("", "cannot be reached"), ("my folder/", "control characters")]
)
def test_a_server_that_is_not_there_is_named(folder, said, tmp_path):
    url = f"http://127.0.0.1:9/{folder}birds.tgz"
    with pytest.raises(DataError, match=rf"{url}: .*{said}.*fetch birds"):
        fetch(archive_of(url=url), tmp_path)


def test_another_file_is_refused_and_not_kept(server, tmp_path):
    server.content = CONTENT[::-1]
    with pytest.raises(DataError, match="expected sha256"):
        fetch(archive_of(url=server.url), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_longer_file_is_refused(server, tmp_path):
    server.content = CONTENT + b"more"
    with pytest.raises(
        DataError, match=rf"sends {len(CONTENT) + 4} bytes where birds\.tgz has {len(CONTENT)}"
    ):
        fetch(archive_of(url=server.url), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_web_page_in_place_of_the_archive_costs_nothing_that_had_come(server, tmp_path):
    (tmp_path / "birds.tgz.part").write_bytes(CONTENT[:500_000])
    server.content, server.ranges = PAGE, False
    with pytest.raises(DataError, match=r"a web page or another file; fetch birds\.tgz by hand"):
        fetch(archive_of(url=server.url), tmp_path)
    server.content, server.ranges = CONTENT, True
    assert fetch(archive_of(url=server.url), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=500000-"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CONTENT[:-1], "it is cut short or another file"),
        (CONTENT[:-1] + b"!", "expected sha256"),
        (PAGE, "is a web page"),
    ],
)
def test_a_file_fetched_by_hand_is_checked_too(content, said, tmp_path):
    (tmp_path / "birds.tgz").write_bytes(content)
    with pytest.raises(DataError, match=said):
        check_archive(archive_of(), tmp_path / "birds.tgz")


def tar_with(path, *members):
    """Write a tar of (name, type, link target) members."""
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"bird"))
    return path


GOOD = ("birds/1.txt", tarfile.REGTYPE, "")
EVIL = [
    ("../outside.txt", tarfile.REGTYPE, ""),
    ("birds/../../outside.txt", tarfile.REGTYPE, ""),
    ("/tmp/racnn-outside.txt", tarfile.REGTYPE, ""),
    ("birds/link", tarfile.SYMTYPE, "/etc/passwd"),
    ("birds/inner-link", tarfile.SYMTYPE, "1.txt"),
    ("birds/hard", tarfile.LNKTYPE, "../../outside.txt"),
    ("birds/device", tarfile.CHRTYPE, ""),
    ("birds/pipe", tarfile.FIFOTYPE, ""),
]


def test_an_archive_is_unpacked(tmp_path):
    (tmp_path / "into").mkdir()
    path = tar_with(tmp_path / "birds.tgz", GOOD, ("list.txt", tarfile.REGTYPE, ""))
    arrived = unpack(path, tmp_path / "into")
    assert arrived == [tmp_path / "into" / "birds", tmp_path / "into" / "list.txt"]
    assert (tmp_path / "into" / "birds" / "1.txt").read_bytes() == b"bird"
    assert len(list((tmp_path / "into").iterdir())) == 2


def test_an_archive_s_modes_are_not_taken(tmp_path):
    (tmp_path / "into").mkdir()
    path = tmp_path / "birds.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, kind in (("birds", tarfile.DIRTYPE), ("birds/1.txt", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o000
            tar.addfile(info)
    unpack(path, tmp_path / "into")
    for entry in (tmp_path / "into" / "birds", tmp_path / "into" / "birds" / "1.txt"):
        assert entry.stat().st_mode & 0o600 == 0o600
        assert not entry.stat().st_mode & 0o7000


@pytest.mark.parametrize("evil", EVIL, ids=[name for name, _, _ in EVIL])
def test_an_archive_that_would_leave_its_folder_leaves_nothing(evil, tmp_path):
    (tmp_path / "into").mkdir()
    path = tar_with(tmp_path / "birds.tgz", GOOD, evil)
    with pytest.raises(DataError, match="expected plain files inside the folder"):
        unpack(path, tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["birds.tgz", "into"]


def test_a_damaged_archive_leaves_nothing(tmp_path):
    (tmp_path / "into").mkdir()
    path = tar_with(tmp_path / "birds.tgz", *[(f"birds/{i}.txt", tarfile.REGTYPE, "") for i in range(50)])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(path, tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


def test_a_plain_file_is_placed(tmp_path):
    (tmp_path / "into").mkdir()
    (tmp_path / "labels.mat").write_bytes(b"labels")
    assert place(tmp_path / "labels.mat", tmp_path / "into").read_bytes() == b"labels"
    assert place(tmp_path / "into" / "labels.mat", tmp_path / "into").read_bytes() == b"labels"
    assert len(list((tmp_path / "into").iterdir())) == 1
