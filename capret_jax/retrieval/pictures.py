"""Small pictures of an index's items, in one file that grows: a ZIP archive of JPEGs."""

import hashlib
import pathlib
import threading
import zipfile

FILE = "pictures.zip"


class Pictures:
    """Reads them; may be shared by threads."""

    def __init__(self, folder: pathlib.Path):
        """`folder`: of an index; it may have no pictures."""
        path = folder / FILE
        self._archive = zipfile.ZipFile(path) if path.is_file() else None
        self._lock = threading.Lock()

    def __call__(self, item_id: str) -> bytes | None:
        """The JPEG file of an item, None where there is none."""
        if self._archive is None:
            return None
        try:
            with self._lock:
                return self._archive.read(_member(item_id))
        except KeyError:
            return None


def add_pictures(folder: pathlib.Path, pictures: dict[str, bytes]) -> None:
    """Appends JPEG files by item id; an id that is there already keeps its picture."""
    with zipfile.ZipFile(folder / FILE, "a", zipfile.ZIP_STORED) as archive:
        known = set(archive.namelist())
        for item_id, jpeg in pictures.items():
            if _member(item_id) not in known:
                archive.writestr(_member(item_id), jpeg)


def _member(item_id: str) -> str:
    # Ids are the shop's, and may be anything.
    return hashlib.sha256(item_id.encode()).hexdigest() + ".jpg"
