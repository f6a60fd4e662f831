"""Small pictures of an index's items, in one file: a ZIP archive of JPEGs."""

import hashlib
import pathlib
import threading
import zipfile
from collections.abc import Iterable

FILE = "pictures.zip"


class Thumbnails:
    """Reads them; may be shared by threads."""

    def __init__(self, folder: pathlib.Path):
        """`folder`: of an index; it may have no pictures."""
        path = folder / FILE
        self._archive = zipfile.ZipFile(path) if path.is_file() else None
        self._names = frozenset(self._archive.namelist() if self._archive else ())
        self._lock = threading.Lock()

    def name(self, item_id: str) -> str | None:
        """What an item's picture is called, None where there is none."""
        name = _name(item_id)
        return name if name in self._names else None

    def __call__(self, name: str) -> bytes | None:
        """The JPEG file of that name, None where there is none."""
        if self._archive is None or name not in self._names:
            return None
        with self._lock:
            return self._archive.read(name)


def write_thumbnails(folder: pathlib.Path, pictures: Iterable[tuple[str, bytes]]) -> None:
    """Writes JPEG files by item id, in place of those that are there."""
    partial = folder / f"{FILE}.partial"
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for item_id, jpeg in pictures:
            archive.writestr(_name(item_id), jpeg)
    partial.replace(folder / FILE)


def _name(item_id: str) -> str:
    # Ids are the shop's, and may be anything.
    return hashlib.sha256(item_id.encode()).hexdigest() + ".jpg"
