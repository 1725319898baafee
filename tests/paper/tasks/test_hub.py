"""The Hub's datasets, from a directory in its format made on the spot."""

import hashlib
import shutil
from types import SimpleNamespace

import pytest

from stepscope.errors import UsageError
from stepscope.paper.tasks import hub
from stepscope.paper.tasks.downloads import UnavailableError
from stepscope.paper.tasks.hub import MODEL_FILES, HubDataset, cached_dataset, cached_model, dataset_rows
from stepscope.paper.tasks.sources import sentences

PART = "en-fr/train-00000-of-00001.parquet"
BOOKS = HubDataset("someone/opus_books", "en-fr")
REVISION = "0123456789abcdef0123456789abcdef01234567"
ROWS = [("The cat sleeps.", "Le chat dort."), ("It rains.", "Il pleut."), ("No.", "Non.")]


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
    """Stands for the Hub's client; serves a directory."""

    def __init__(self, repository):
        self.repository, self.questions, self.downloads, self.error = repository, 0, 0, None
        self.names = [PART, "README.md", "de-fr/train-00000-of-00001.parquet", "en-fr/test-00000-of-00001.parquet"]
        self.sha256 = hashlib.sha256((repository / PART).read_bytes()).hexdigest()

    def HfApi(self):  # noqa: N802
        return self

    def dataset_info(self, name, *, files_metadata, timeout):
        self.questions += 1
        assert files_metadata
        assert timeout <= 5
        if self.error:
            raise self.error
        lfs = SimpleNamespace(sha256=self.sha256)
        return SimpleNamespace(sha=REVISION, siblings=[SimpleNamespace(rfilename=n, lfs=lfs) for n in self.names])

    def hf_hub_download(self, name, path, *, repo_type, revision, local_dir, etag_timeout):
        self.downloads += 1
        assert (repo_type, revision) == ("dataset", REVISION)
        if self.error:
            raise self.error
        (local_dir / path).parent.mkdir()
        return shutil.copy(self.repository / path, local_dir / path)


@pytest.fixture
def server(repository, monkeypatch):
    server = FakeHub(repository)
    real = hub.require
    monkeypatch.setattr(hub, "require", lambda name, extra: server if name == "huggingface_hub" else real(name, extra))
    return server


def test_fetched_once_then_without_the_hub(server, cache):
    paths, revision = cached_dataset(BOOKS)
    assert paths == [cache / "opus_books" / PART]
    assert revision == REVISION
    server.error = ConnectionError("https://user:secret@hub.example.com")
    assert cached_dataset(BOOKS) == (paths, revision)
    assert (server.questions, server.downloads) == (1, 1)


def test_unreachable_hub_is_named_without_its_address(server, cache):
    server.error = ConnectionError("https://user:secret@hub.example.com")
    with pytest.raises(UnavailableError) as caught:
        cached_dataset(BOOKS)
    assert str(caught.value) == "the Hub cannot be used (ConnectionError)"
    assert not list(cache.rglob("*.*"))


def test_file_unlike_its_announced_digest_is_refused(server, cache):
    server.sha256 = "0" * 64
    with pytest.raises(UnavailableError, match="SHA-256"):
        cached_dataset(BOOKS)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_no_such_config(server):
    server.names = ["README.md", "../en-fr/x.parquet", "en-fr/deeper/x.parquet"]
    with pytest.raises(UnavailableError, match=r"lists no files train-\*.parquet for en-fr"):
        cached_dataset(BOOKS)


@pytest.mark.parametrize(
    "record", ["{", "[]", '{"revision": "x"}', '{"revision": "x", "files": {"../up.parquet": "0"}}']
)
def test_damaged_record_asks_the_hub_again(server, cache, record):
    cached_dataset(BOOKS)
    (cache / "opus_books/en-fr/revision.json").write_text(record)
    assert cached_dataset(BOOKS)[1] == REVISION
    assert (server.questions, server.downloads) == (2, 1)


def test_offline_is_respected(monkeypatch):
    client = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError, match="OfflineModeIsEnabled"):
        cached_dataset(BOOKS)


def test_rows_of_a_directory_in_the_hubs_format(repository):
    rows = list(dataset_rows([repository / PART], column="translation"))
    assert [(row["translation"]["en"], row["translation"]["fr"]) for row in rows] == ROWS


def test_rows_of_something_else(repository, tmp_path):
    with pytest.raises(UnavailableError, match="no column 'text'"):
        list(dataset_rows([repository / PART], column="text"))
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(UnavailableError, match=r"x\.parquet cannot be read"):
        list(dataset_rows([tmp_path / "x.parquet"], column="text"))


def test_pairs_from_opus_books(server):
    pairs, source = sentences.load_pairs("opus_books", min_words=2, max_words=9)
    assert pairs == ROWS[:2]
    assert (source.name, source.sha256, source.examples) == ("opus_books", server.sha256, 2)
    assert REVISION[:12] in source.title
    server.error = ConnectionError()
    with pytest.raises(UsageError, match="no pair of 30 to 40 words"):
        sentences.load_pairs("opus_books", min_words=30, max_words=40)


class FakeModels:
    """Stands for the Hub's client and its own cache, for models."""

    def __init__(self, cache, files):
        self.folder, self.files, self.calls, self.error = cache / "snapshots" / REVISION, files, [], None

    def HfApi(self):  # noqa: N802
        return self

    def model_info(self, name, *, revision, timeout):
        self.calls.append(f"info {revision}")
        assert timeout <= 5
        if self.error:
            raise self.error
        return SimpleNamespace(sha=REVISION, siblings=[SimpleNamespace(rfilename=file) for file in self.files])

    def snapshot_download(self, name, *, revision, allow_patterns, local_files_only=False):
        if local_files_only and not self.folder.is_dir():
            raise FileNotFoundError
        if not local_files_only:
            self.calls.append(f"download {revision}")
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in set(self.files) & set(allow_patterns):
                (self.folder / file).write_bytes(b"x")
        return str(self.folder)


@pytest.fixture
def models(tmp_path, monkeypatch):
    def serve(*files):
        server = FakeModels(tmp_path, files)
        monkeypatch.setattr(hub, "require", lambda name, extra: server)
        return server

    return serve


def test_a_model_is_fetched_once_then_had_without_the_hub(models):
    server = models(*MODEL_FILES, "pytorch_model.bin", "tokenizer.json")
    assert cached_model("someone/resnet") == (server.folder, REVISION)
    server.error = ConnectionError()
    assert cached_model("someone/resnet") == (server.folder, REVISION)
    assert server.calls == ["info None", "download None"]
    assert {path.name for path in server.folder.iterdir()} == set(MODEL_FILES)  # so no pickle is ever fetched


def test_a_model_with_more_files_of_another_revision(models):
    server = models(*MODEL_FILES, "tokenizer.json")
    cached_model("someone/t5")
    cached_model("someone/t5", files=(*MODEL_FILES, "tokenizer.json"), revision="refs/pr/1")
    assert server.calls == ["info None", "download None", "info refs/pr/1", "download refs/pr/1"]
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
        cached_model("someone/t5", files=(*MODEL_FILES, "tokenizer.json"))
    assert server.calls == ["info None"]


def test_an_unreachable_hub_downloads_no_model(models):
    server = models(*MODEL_FILES)
    server.error = ConnectionError("https://user:secret@hub.example.com")
    with pytest.raises(UnavailableError) as caught:
        cached_model("someone/resnet")
    assert str(caught.value) == "the Hub cannot be used (ConnectionError)"
    assert server.calls == ["info None"]
