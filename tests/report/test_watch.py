"""The page of a run that goes on, as a browser of this machine gets it, and what others are told."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial

import pytest

from probed_runs import call, own, probed_run, steps_of
from stepscope.errors import UsageError
from stepscope.report.watch import PageServer, version_of
from stepscope.runs import DirectionRecord, RunDirectory
from synthetic_records import CONFIGURATION, run_directory, synthetic_records


def asked(server, path="/", host=None):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


@contextlib.contextmanager
def serving(page, version=lambda: "1"):
    with PageServer(page, version) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_the_page_is_made_again_when_there_are_new_records(tmp_path):
    run, made = probed_run(tmp_path / "run", steps=steps_of(3)), []

    def page():
        made.append(0)
        return f"<h1>{len(made)}</h1>"

    with serving(page, partial(version_of, run)) as server:
        version = asked(server, "/version")[2]
        assert [asked(server, "/page")[2] for _ in range(2)] == ["<h1>1</h1>"] * 2
        head = {"experiment": "probe", "model": "Net", "parameters": 1200, "optimizer": "SGD"}
        with RunDirectory.open(run, DirectionRecord, head) as opened:
            opened.append_step(replace(steps_of(1)[0], step=50))
        assert asked(server, "/version")[2] != version
        assert asked(server, "/page")[2] == "<h1>2</h1>"


@pytest.mark.parametrize("path", ["/", "/page", "/version"])
def test_another_sites_name_is_refused(path):
    with serving(lambda: "secret") as server:
        for host in (
            "evil.example",
            f"evil.example:{server.server_port}",
            "127.0.0.1.evil.example",
            "",
            "[::1",
            "0.0.0.0",
        ):
            status, _, text = asked(server, path, host)
            assert (status, "secret" in text) == (403, False)
        for host in (None, "localhost", f"LOCALHOST:{server.server_port}", "127.0.0.1:1"):
            assert asked(server, path, host)[0] == 200


def test_it_listens_to_this_machine_alone_and_lets_no_site_frame_it():
    with serving(lambda: "") as server:
        assert server.server_address[0] == "127.0.0.1"
        for path in ("/", "/page", "/version", "/other", "/../run.json"):
            status, headers, _ = asked(server, path)
            assert status == (404 if path.startswith(("/o", "/.")) else 200)
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Access-Control-Allow-Origin" not in headers
        assert "frame-ancestors 'none'" in asked(server)[1]["Content-Security-Policy"]
        assert "frame-ancestors 'self'" in asked(server, "/page")[1]["Content-Security-Policy"]


def test_a_mistake_is_said_as_plain_text():
    def page():
        raise UsageError("<b>damaged</b>")

    with serving(page) as server:
        status, headers, text = asked(server, "/page")
    assert (status, headers["Content-Type"], text) == (503, "text/plain; charset=utf-8", "<b>damaged</b>")


def test_the_command_serves_until_ctrl_c_and_writes_nothing(tmp_path):
    run = probed_run(tmp_path / "run", own(10), steps_of())
    before = sorted(run.iterdir())
    command = [sys.executable, "-m", "stepscope", "report", str(run), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[0]
        connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=60)
        connection.request("GET", "/page")
        page = connection.getresponse().read().decode()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "<h1>Net, trained by SGD</h1>" in page
    assert sorted(run.iterdir()) == before


def test_what_cannot_be_watched_is_one_line(tmp_path, capsys):
    run = probed_run(tmp_path / "all" / "run", steps=steps_of())
    assert "leave out --out" in call("report", run, "--watch", "--out", "page.html", capsys=capsys, status=2)
    assert "give one of those in it" in call("report", tmp_path / "all", "--watch", capsys=capsys, status=2)
    run_directory(tmp_path / "reproduction" / "run", synthetic_records(steps=(1,)), configuration=CONFIGURATION)
    assert "leave out --watch" in call("report", tmp_path / "reproduction", "--watch", capsys=capsys, status=2)
    shutil.rmtree(run)
    assert "cannot read" in call("report", run, "--watch", capsys=capsys, status=2)
