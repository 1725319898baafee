"""The cache: right content or none, whatever fails on the way."""

import hashlib
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stepscope.paper.tasks import downloads
from stepscope.paper.tasks.downloads import UnavailableError, Wheel, cached_file, cached_wheel

GOOD = b"the right content"
DIGEST = hashlib.sha256(GOOD).hexdigest()


class Server:
    """Serves one content, and counts."""

    def __init__(self, content=GOOD):
        self.content, self.calls = content, 0

    def __call__(self, scratch):
        self.calls += 1
        (scratch / "part").write_bytes(self.content)
        return scratch / "part"


def names(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_fetched_once(cache):
    server = Server()
    paths = {cached_file("a/b.bin", server, sha256=DIGEST) for _ in range(3)}
    assert paths == {cache / "a/b.bin"}
    assert (cache / "a/b.bin").read_bytes() == GOOD
    assert server.calls == 1
    assert names(cache) == ["a", "a/b.bin"]


def test_two_that_want_a_file_fetch_it_once(cache):
    """The second waits, and takes what the first has fetched."""
    server, begun = Server(), threading.Event()

    def slow(scratch):
        begun.set()
        time.sleep(0.3)
        return server(scratch)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cached_file, "b.bin", slow)
        begun.wait(10)
        assert cached_file("b.bin", server) == first.result()
    assert server.calls == 1
    assert names(cache) == ["b.bin", "b.bin.sha256"]


def test_whoever_dies_while_fetching_keeps_nobody_waiting(cache):
    code = (
        "import os; from stepscope.paper.tasks.downloads import cached_file; "
        "cached_file('b.bin', lambda scratch: os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert cached_file("b.bin", Server()).read_bytes() == GOOD


def test_wrong_download_is_refused_and_leaves_nothing(cache):
    with pytest.raises(UnavailableError, match="SHA-256"):
        cached_file("b.bin", Server(b"tampered"), sha256=DIGEST)
    assert names(cache) == []


def test_damaged_file_is_fetched_anew(cache):
    server = Server()
    cached_file("b.bin", server, sha256=DIGEST).write_bytes(GOOD[:5])
    assert cached_file("b.bin", server, sha256=DIGEST).read_bytes() == GOOD
    assert server.calls == 2


def test_damaged_file_is_not_used_when_it_cannot_be_fetched_anew(cache):
    cached_file("b.bin", Server(), sha256=DIGEST).write_bytes(GOOD[:5])
    with pytest.raises(UnavailableError):
        cached_file("b.bin", Server(b"tampered"), sha256=DIGEST)
    assert names(cache) == []


def test_unknown_digest_is_recorded_and_finds_later_damage(cache):
    server = Server()
    path = cached_file("b.deb", server)
    assert (cache / "b.deb.sha256").read_text().strip() == DIGEST
    cached_file("b.deb", server)
    assert server.calls == 1
    path.write_bytes(b"damaged")
    assert cached_file("b.deb", server).read_bytes() == GOOD
    (cache / "b.deb.sha256").unlink()
    cached_file("b.deb", server)
    assert server.calls == 3


@pytest.mark.parametrize("failure", [UnavailableError("gone"), KeyboardInterrupt()])
def test_no_half_written_file_stays(cache, failure):
    def fetch(scratch):
        (scratch / "part").write_bytes(GOOD[:3])
        raise failure

    with pytest.raises(type(failure)):
        cached_file("b.bin", fetch, sha256=DIGEST)
    assert names(cache) == []


def test_an_unwritable_cache_says_how_to_choose_another(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEPSCOPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnavailableError, match="STEPSCOPE_CACHE"):
        cached_file("b.bin", Server(), sha256=DIGEST)


def test_cache_directory_order(monkeypatch, tmp_path):
    assert downloads.cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("STEPSCOPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert downloads.cache_directory() == tmp_path / "xdg" / "stepscope"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert downloads.cache_directory() == tmp_path / ".cache" / "stepscope"


def pip_that(monkeypatch, *, returncode=0, output=b"", writes=()):
    def run(command, *, cwd, seconds):
        assert "--no-deps" in command
        for name in writes:
            (cwd / name).write_bytes(GOOD)
        return subprocess.CompletedProcess(command, returncode, b"", output)

    monkeypatch.setattr(downloads, "run_tool", run)


def test_wheel_comes_through_pip(cache, monkeypatch):
    pip_that(monkeypatch, writes=["thing-1.0-py3-none-any.whl"])
    assert cached_wheel(Wheel("thing", "1.0", DIGEST)).read_bytes() == GOOD
    assert names(cache) == ["thing-1.0.whl"]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (b"/usr/bin/python: No module named pip", "no pip"),
        (b"WARNING: Retrying after connection broken by X\nERROR: No matching distribution found", "no connection"),
        (b"ERROR: No matching distribution found for thing", "does not have it"),
        (b"ERROR: something else", "exit status 1"),
    ],
)
def test_pip_failures_are_told_without_its_output(cache, monkeypatch, output, reason):
    address = b"\nLooking in indexes: https://someone:secret@packages.example.com/simple"
    pip_that(monkeypatch, returncode=1, output=output + address, writes=["half.whl.part"])
    with pytest.raises(UnavailableError, match=reason) as caught:
        cached_wheel(Wheel("thing", "1.0", DIGEST))
    assert not any(word in str(caught.value) for word in ("secret", "someone", "example.com"))
    assert names(cache) == []


def test_pip_without_a_wheel(monkeypatch):
    pip_that(monkeypatch)
    with pytest.raises(UnavailableError, match="0 files"):
        cached_wheel(Wheel("thing", "1.0", DIGEST))


def test_tools_that_are_missing_or_hang(tmp_path):
    with pytest.raises(UnavailableError, match="no-such-tool could not be run"):
        downloads.run_tool(["no-such-tool"], cwd=tmp_path, seconds=5)
    with pytest.raises(UnavailableError, match="more than"):
        downloads.run_tool(["sleep", "5"], cwd=tmp_path, seconds=0.05)


def test_no_debian_tools(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match="no apt-get"):
        downloads.cached_debian_package("thing")
