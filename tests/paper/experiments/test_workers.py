"""Jobs side by side: messages arrive, mistakes arrive, nobody is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepscope import UsageError
from stepscope.paper.experiments.workers import run_jobs


@pytest.fixture(autouse=True)
def _processes_start_at_once(tmp_path, monkeypatch):
    """A process imports torch to set its threads, which takes far longer than all else that it does here."""
    (tmp_path / "torch.py").write_text("def set_num_threads(count): pass")
    monkeypatch.syspath_prepend(tmp_path)


def never(number, reason):
    pytest.fail(f"job {number}: {reason}")


def say(job, tell):
    for number in range(3):
        tell((job, number, os.getpid(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def fail(job, tell):
    tell(job)
    if job == "bad":
        raise UsageError("the job is bad")
    for _ in range(600):  # until it is told to stop
        time.sleep(0.05)
        tell(job)


def die(job, tell):
    tell(job)
    os._exit(3)


@pytest.mark.parametrize("processes", [1, 2])
def test_all_messages_arrive_in_the_order_of_their_job(processes):
    found = {}
    run_jobs(say, ["a", "b", "c"], processes, lambda job, message: found.setdefault(job, []).append(message), never)
    assert {job: [m[:2] for m in messages] for job, messages in found.items()} == {
        i: [(name, k) for k in range(3)] for i, name in enumerate("abc")
    }
    said = [message for messages in found.values() for message in messages]
    pids, blocked = ({message[place] for message in said} for place in (2, 3))
    assert (pids == {os.getpid()}) == (processes == 1)
    # A worker that imports for seconds before it could ignore Ctrl-C would print a traceback.
    assert blocked == {processes == 2}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_jobs_mistake_is_raised_here_and_the_others_stop():
    started = time.monotonic()
    with pytest.raises(UsageError, match="the job is bad"):
        run_jobs(fail, ["long", "bad"], 2, lambda *_: None, never)
    assert time.monotonic() - started < 25  # the other would go on for 30 seconds more


def die_of_some(job, tell):
    tell(os.getpid())
    if job == "bad":
        os._exit(3)
    tell("done")


@pytest.mark.parametrize("jobs", [["bad", "bad"], ["bad", "b", "c"]])
def test_a_process_that_dies_is_one_lost_job(jobs):
    """The others are done, by another process in its place."""
    found, lost = {}, {}
    run_jobs(die_of_some, jobs, 2, lambda job, message: found.setdefault(job, []).append(message), lost.__setitem__)
    assert set(lost) == {number for number, job in enumerate(jobs) if job == "bad"}
    assert all("a process died, perhaps for want of memory" in reason for reason in lost.values())
    assert [messages[-1] for number, messages in found.items() if number not in lost] == ["done"] * jobs.count("b") * 2
    assert multiprocessing.active_children() == []


def chatter(job, tell):
    for _ in range(2000):
        tell("x" * 6000)


def test_an_interruption_while_messages_are_waiting_is_no_hang():
    """The pipes are full by then: workers that wait to be heard are stopped all the same."""

    def slow(*_):
        time.sleep(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(chatter, ["a", "b"], 2, slow, never)
    assert multiprocessing.active_children() == []


def test_a_process_that_is_killed_in_the_middle_of_a_message_is_a_lost_job():
    killed, lost = [], []

    def kill(*_):
        if not killed:
            time.sleep(0.5)  # its pipe is full: it is writing
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    run_jobs(chatter, ["a", "b"], 2, kill, lambda number, reason: lost.append(number))
    assert len(lost) == 1
    assert multiprocessing.active_children() == []


def silent(job, tell):
    tell(os.getpid())
    time.sleep(120)


@pytest.mark.slow
def test_silent_workers_end_with_a_parent_that_is_killed():
    """One that says nothing can't notice by its pipe that nobody listens."""
    code = (
        "from test_workers import silent; from stepscope.paper.experiments.workers import run_jobs; "
        "run_jobs(silent, [0, 1], 2, lambda _, pid: print(pid, flush=True), print)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    limit = time.monotonic() + 20
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < limit, "workers outlive their parent"
        time.sleep(0.1)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_no_processes():
    with pytest.raises(UsageError, match="0 jobs at a time"):
        run_jobs(say, ["a"], 0, lambda *_: None, never)
