"""Opens files and folders in buckets: directly, or from a copy that is staged on this machine."""

import contextlib
import hashlib
import importlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from capret_jax.buckets.urls import url_scheme
from capret_jax.errors import InputError, first_line

# Scheme -> module of fsspec that speaks its protocol.
_MODULES = {"gs": "gcsfs", "s3": "s3fs"}
# Scheme that Orbax reads and writes itself.
_ORBAX = "gs"


def open_folder(path: str | os.PathLike) -> pathlib.Path:
    """Opens a folder, or a file, for reading as far as Orbax and `pathlib`'s methods go.

    Args:
        path: on a disk; in a bucket `gs://`, which is read directly; or in one of `s3://`, of which
            a copy is staged.

    Raises:
        InputError: the bucket cannot be read.
    """
    scheme = url_scheme(path)
    if not scheme:
        return pathlib.Path(path)
    if scheme != _ORBAX:
        return pathlib.Path(staged(path))
    url = os.fspath(path)
    with _reaching(url):
        # Raises its errors here, where they can be named.
        _file_system(url).exists(url)
    return epath.Path(url)  # type: ignore[return-value] # has the same methods


def open_workdir(url: str) -> pathlib.Path:
    """Opens a folder in a bucket for checkpoints, after an attempt to write there.

    Raises:
        InputError: Orbax cannot write to such buckets, or this one cannot be written.
    """
    if url_scheme(url) != _ORBAX:
        raise InputError(
            f"{url}: checkpoints can be written to a disk or to gs://, not to "
            f"{url_scheme(url)}://; choose another folder, and copy it afterwards."
        )
    probe = f"{url.rstrip('/')}/.writable"
    with _reaching(url):
        files = _file_system(url)
        files.pipe_file(probe, b"")
        files.rm_file(probe)
    return epath.Path(url)  # type: ignore[return-value] # has the same methods


def staged(path: str | os.PathLike, within: str = "") -> str:
    """Returns a path on a disk: the same one, or that of a copy of what is in a bucket.

    A copy is kept in `cache_folder()` and used again while names, sizes and versions of the files
    in the bucket stay the same. It appears when it is complete.

    Args:
        path: file or folder, on a disk or in a bucket.
        within: folder in a folder `path`; nothing else of it is copied.

    Raises:
        InputError: the bucket cannot be read, or there is nothing.
    """
    if not url_scheme(path):
        return os.fspath(path)
    url = os.fspath(path).rstrip("/")
    with _reaching(url):
        files, found = _file_system(url), _list(url, within)
    if not found:
        raise InputError(
            f"{url}{'/' if within else ''}{within} does not exist, or is empty: make it on a disk, "
            "and copy it to the bucket."
        )
    digest = hashlib.sha256(json.dumps([url, sorted(found.items())]).encode()).hexdigest()
    copy = cache_folder() / digest[:32]
    name = url.rsplit("/", 1)[1]
    if not copy.exists():
        size = sum(file_size for file_size, _ in found.values())
        print(f"copying {url}: {len(found)} files, {size / 1e6:.1f} MB, to {copy}", flush=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch, _reaching(url):
            partial = pathlib.Path(scratch) / "partial"
            for relative, (file_size, _) in found.items():
                target = partial / name / relative if relative else partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(f"{url}/{relative}" if relative else url, str(target))
                if target.stat().st_size != file_size:
                    raise InputError(f"{url} changed while it was copied: run this again.")
            with contextlib.suppress(FileExistsError, OSError):  # another process was faster
                partial.rename(copy)
    return str(copy / name)


def cache_folder() -> pathlib.Path:
    """Returns the folder of staged copies, which may be deleted: `$CAPRET_CACHE` if it is set."""
    folder = os.environ.get("CAPRET_CACHE") or pathlib.Path.home() / ".cache" / "capret_jax"
    path = pathlib.Path(folder) / "buckets"
    path.mkdir(parents=True, exist_ok=True)
    return path


def read_small_files(url: str, folder: pathlib.Path) -> None:
    """Copies the files directly in a folder of a bucket, but not its TensorBoard events, to disk.

    Raises:
        InputError: the bucket cannot be read.
    """
    with _reaching(url):
        files = _file_system(url)
        for entry in files.ls(url, detail=True) if files.exists(url) else ():
            name = entry["name"].rsplit("/", 1)[1]
            if entry["type"] == "file" and name and not name.startswith("events."):
                files.get_file(entry["name"], str(folder / name))


def write_files(url: str, sources: dict[str, pathlib.Path], removed: str = "") -> None:
    """Copies files to a folder of a bucket, in order.

    Args:
        url: the folder.
        sources: name in the folder -> file on a disk.
        removed: a folder in it, of which files that are not in `sources` are then deleted.

    Raises:
        InputError: the bucket cannot be written.
    """
    with _reaching(url):
        files = _file_system(url)
        for name, source in sources.items():
            files.put_file(str(source), f"{url}/{name}")
        for name in _list(url, removed) if removed else ():
            if name not in sources:
                files.rm_file(f"{url}/{name}")


def _list(url: str, within: str) -> dict[str, tuple[int, str]]:
    """Returns relative name -> size and version of all files; the name "" for a file itself."""
    files = _file_system(url)
    root = files._strip_protocol(url)
    found = files.find(f"{url}/{within}".rstrip("/"), detail=True)
    return {
        name.removeprefix(root).lstrip("/"): (
            int(info["size"]),
            str(info.get("generation") or info.get("ETag") or info.get("mtime")),
        )
        for name, info in sorted(found.items())
        if not name.endswith("/")  # a marker of an empty folder
    }


def _file_system(url: str) -> Any:
    """Opens fsspec's file system of a URL.

    Raises:
        InputError: the scheme is unknown, or its library is not installed.
    """
    scheme = url_scheme(url)
    if scheme not in _MODULES:
        raise InputError(f"{url}: {scheme}:// is not known, only gs:// and s3://.")
    try:
        importlib.import_module(_MODULES[scheme])
        import fsspec
    except ImportError as error:
        raise InputError(
            f"{url} needs {_MODULES[scheme]}: pip install 'capret_jax[buckets]'."
        ) from error
    for protocol in ("gcs", "s3"):
        # epath's and Orbax's, too: they would not see what another process writes.
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem(scheme)


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Turns the many errors of the libraries into one that names the path.

    Raises:
        InputError: the block raised an error.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of aiohttp, google-auth, botocore and others
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{url} cannot be reached ({reason}): give this account the right to the bucket "
            "(gcloud auth application-default login), or choose another place."
        ) from error
