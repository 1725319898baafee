"""A reproduction that was written once, for the tests of its files and for those in a browser."""

import pytest

from synthetic_reproduction import CLAIMS, FIGURES, make


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Its folder, the records of its trajectories, the files, and what its progress was told."""
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    from stepscope.paper.experiments.run_files import read_runs
    from stepscope.paper.reproduction.reproduction_page import write_reproduction

    path, records = make(tmp_path_factory.mktemp("reproduction"))
    told = []
    written = write_reproduction(
        path, read_runs(path), CLAIMS, lambda part, what: told.append((part, what)), figures=FIGURES
    )
    return path, records, written, told
