"""Models and datasets of the Hub, from a directory in its format made on the spot."""

import hashlib
import shutil
from types import SimpleNamespace

import pytest

from stepscope.errors import UsageError
from stepscope.paper.tasks import hub
from stepscope.paper.tasks.downloads import UnavailableError
from stepscope.paper.tasks.hub import MODEL_FILES, HubDataset, cached_dataset, cached_files, dataset_rows
from stepscope.paper.tasks.sources import sentences

PART = "en-fr/train-00000-of-00001.parquet"
BOOKS = HubDataset("someone/opus_books", "en-fr")
REVISION = "0123456789abcdef0123456789abcdef01234567"
ROWS = [("The cat sleeps.", "Le chat dort."), ("It rains.", "Il pleut."), ("No.", "Non.")]
T5_FILES = (*MODEL_FILES, "tokenizer.json")


@pytest.fixture
def repository(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    (tmp_path / "repository/en-fr").mkdir(parents=True)
    translations = [{"en": english, "fr": french} for english, french in ROWS]
    table = arrow.table({"id": [str(n) for n in range(len(ROWS))], "translation": translations})
    parquet.write_table(table, tmp_path / "repository" / PART)
    return tmp_path / "repository"


class FakeHub:
    """Stands for the Hub's client and its own cache; serves a directory."""

    def __init__(self, repository, cache):
        self.repository, self.folder, self.calls, self.error = repository, cache / "snapshots" / REVISION, [], None

    def HfApi(self):  # noqa: N802
        return self

    def repo_info(self, name, *, repo_type, revision, timeout):
        self.calls.append(f"info {repo_type} {revision}")
        assert timeout <= 5
        if self.error:
            raise self.error
        files = [path for path in self.repository.rglob("*") if path.is_file()]
        names = [path.relative_to(self.repository).as_posix() for path in files]
        return SimpleNamespace(sha=REVISION, siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, name, *, repo_type, revision, allow_patterns, local_files_only=False):
        if local_files_only and not self.folder.is_dir():
            raise FileNotFoundError
        if not local_files_only:
            self.calls.append(f"download {repo_type} {revision}")
            for file in allow_patterns:
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.repository / file, self.folder / file)
        return str(self.folder)


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = FakeHub(tmp_path / "repository", tmp_path / "client")
    real = hub.require
    monkeypatch.setattr(hub, "require", lambda name, extra: server if name == "huggingface_hub" else real(name, extra))
    return server


@pytest.fixture
def models(server):
    def serve(*files):
        server.repository.mkdir()
        for file in files:
            (server.repository / file).write_bytes(b"x")
        return server

    return serve


def test_a_dataset_is_fetched_once_then_had_without_the_hub(server, repository):
    assert cached_dataset(BOOKS) == (server.folder / PART, REVISION)
    server.error = ConnectionError()
    assert cached_dataset(BOOKS) == (server.folder / PART, REVISION)
    assert server.calls == ["info dataset None", "download dataset None"]


def test_no_such_config(server, repository):
    with pytest.raises(UnavailableError, match=r"^at 0123456789ab the Hub has no de-fr/train-00000-of-00001\.parquet$"):
        cached_dataset(HubDataset("someone/opus_books", "de-fr"))


def test_an_unreachable_hub_is_named_without_its_address(models):
    server = models(*MODEL_FILES)
    server.error = ConnectionError("https://user:secret@hub.example.com")
    with pytest.raises(UnavailableError) as caught:
        cached_files("someone/resnet")
    assert str(caught.value) == "the Hub cannot be used (ConnectionError)"
    assert server.calls == ["info model None"]


def test_offline_is_respected(monkeypatch):
    client = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError, match="OfflineModeIsEnabled"):
        cached_dataset(BOOKS)


def test_rows_of_a_directory_in_the_hubs_format(repository):
    rows = list(dataset_rows(repository / PART, column="translation"))
    assert [(row["translation"]["en"], row["translation"]["fr"]) for row in rows] == ROWS


def test_rows_of_something_else(repository, tmp_path):
    with pytest.raises(UnavailableError, match="no column 'text'"):
        list(dataset_rows(repository / PART, column="text"))
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(UnavailableError, match=r"x\.parquet cannot be read"):
        list(dataset_rows(tmp_path / "x.parquet", column="text"))


def test_pairs_from_opus_books(server, repository):
    pairs, source = sentences.load_pairs("opus_books", min_words=2, max_words=9)
    assert pairs == ROWS[:2]
    digest = hashlib.sha256((repository / PART).read_bytes()).hexdigest()
    assert (source.name, source.sha256, source.examples) == ("opus_books", digest, 2)
    assert REVISION[:12] in source.title
    with pytest.raises(UsageError, match="no pair of 30 to 40 words"):
        sentences.load_pairs("opus_books", min_words=30, max_words=40)


def test_of_a_model_no_pickle_is_fetched(models):
    server = models(*MODEL_FILES, "pytorch_model.bin", "tokenizer.json")
    assert cached_files("someone/resnet") == (server.folder, REVISION)
    assert {path.name for path in server.folder.iterdir()} == set(MODEL_FILES)


def test_a_model_with_more_files_of_another_revision(models):
    server = models(*T5_FILES)
    cached_files("someone/t5")
    cached_files("someone/t5", T5_FILES, revision="refs/pr/1")
    assert server.calls[2:] == ["info model refs/pr/1", "download model refs/pr/1"]
    assert (server.folder / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("there", "lacking"),
    [
        (["config.json"], r"no model\.safetensors$"),
        (
            ["config.json", "pytorch_model.bin"],
            r"no model\.safetensors, only pytorch_model\.bin, a pickle, which is never",
        ),
        (MODEL_FILES, r"no tokenizer\.json$"),
        (["model.safetensors", "pytorch_model.bin"], r"no config\.json$"),
    ],
)
def test_a_model_that_lacks_a_file(models, there, lacking):
    server = models(*there)
    with pytest.raises(UnavailableError, match=f"^at 0123456789ab the Hub has {lacking}"):
        cached_files("someone/t5", T5_FILES)
    assert server.calls == ["info model None"]
