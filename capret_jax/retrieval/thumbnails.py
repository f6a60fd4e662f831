"""Thumbnails of an index's items: a ZIP archive of JPEG files."""

import hashlib
import pathlib
import threading
import zipfile
from collections.abc import Iterable

_FILE = "pictures.zip"


class Thumbnails:
    """Reads thumbnails; thread-safe."""

    def __init__(self, folder: pathlib.Path):
        """
        Args:
            folder: folder of an index, with or without thumbnails.
        """
        path = folder / _FILE
        self._archive = zipfile.ZipFile(path) if path.is_file() else None
        self._names = frozenset(self._archive.namelist() if self._archive else ())
        self._lock = threading.Lock()

    def file_name(self, item_id: str) -> str | None:
        """Returns the name of an item's thumbnail, None where it has none."""
        name = _file_name(item_id)
        return name if name in self._names else None

    def read(self, name: str) -> bytes | None:
        """Returns the JPEG file of a name, None where there is none."""
        if self._archive is None or name not in self._names:
            return None
        with self._lock:
            return self._archive.read(name)


def write_thumbnails(folder: pathlib.Path, thumbnails: Iterable[tuple[str, bytes]]) -> None:
    """Writes (item id, JPEG file) pairs; all earlier thumbnails of the folder are replaced."""
    partial = folder / f"{_FILE}.partial"
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for item_id, jpeg in thumbnails:
            archive.writestr(_file_name(item_id), jpeg)
    partial.replace(folder / _FILE)


def _file_name(item_id: str) -> str:
    # Ids may contain characters that are not allowed in file names and URLs.
    return hashlib.sha256(item_id.encode()).hexdigest() + ".jpg"
