"""What all tests share: threads, seeds, and the table of model families that is printed at the end."""

import gc
import os
import signal
from collections import defaultdict

import pytest

gc.disable()  # what is imported stays, and looking through it again and again takes a third of the collection

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# Small models lose more to threads than they gain, and a result must not depend on their number.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start


# A machine that others use stalls now and then: no example has to be done within a fifth of a second.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """A cache of their own, so that no test takes what another version has made, and none leaves anything behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded():
    """Each test starts from the same random state, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _interruptible():
    """A process that a shell has put in the background ignores Ctrl-C; the tests press it all the same."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    pytest.importorskip("playwright.sync_api")
    from browsers import chromium, launched

    if chromium() is None:
        pytest.skip("no Chromium: none of chromium, google-chrome, chromium-browser is on the PATH")
    with launched() as found:
        yield found


def pytest_collection_modifyitems(items):
    """Tests with other training libraries come first: importing these takes seconds, and so one worker alone does.

    Then come the files with a slow test: none of them is begun when the other worker has nothing left to do.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    others = {i.path for i in items if "integrations" in i.path.parts or i.path.name == "test_examples.py"}
    items.sort(key=lambda item: (item.path not in others, item.path not in slow))


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


class FamilyTable:
    """The results of each family of models, a column for each thing that is promised."""

    COLUMNS = ("uᵀHu float64", "uᵀHu float32", "Σ shares", "training", "raises", "Ctrl-C", "NaN")

    def __init__(self):
        self.rows = defaultdict(dict)

    def worst(self, family, column, error):
        self.rows[family][column] = max(error, self.rows[family].get(column, 0.0))

    def merge(self, rows):
        """Takes in the rows of another process, which may have had other tests of the same families."""
        for family, row in rows.items():
            for column, result in row.items():
                if isinstance(result, float):
                    self.worst(family, column, result)
                else:
                    self.identical(family, column)

    def identical(self, family, column):
        self.rows[family][column] = "identical"

    def lines(self):
        yield "".join([f"{'':12}", *(f"{column:>14}" for column in self.COLUMNS)])
        for family, row in sorted(self.rows.items()):
            cells = [row.get(column, "-") for column in self.COLUMNS]
            yield "".join([f"{family:12}", *(f"{c:>14.0e}" if isinstance(c, float) else f"{c:>14}" for c in cells)])


_TABLE = FamilyTable()


@pytest.fixture
def family_table():
    return _TABLE


def pytest_sessionfinish(session):
    """A worker hands its rows to the process that prints the table."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["families"] = {family: dict(row) for family, row in _TABLE.rows.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _TABLE.merge(getattr(node, "workeroutput", {}).get("families", {}))


def pytest_terminal_summary(terminalreporter):
    if _TABLE.rows:
        terminalreporter.section("model families: largest error as a part of ‖H‖₂; training with the probe")
        for line in _TABLE.lines():
            terminalreporter.write_line(line)
