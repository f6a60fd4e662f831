"""Pictures in a folder of files, JPEG or PNG."""

import functools
import pathlib

from capret_jax.data.images import Photograph
from capret_jax.errors import InputError


class PictureFolder:
    """A folder of pictures, which are read by their paths in it."""

    def __init__(self, folder: str, resize: str = "fast", cached_images: int = 0):
        """
        Args:
            folder: the folder, `task.images`.
            resize: how views are resized, one of `config.data.RESIZES`.
            cached_images: number of decoded pictures to keep in memory.
        """
        self._folder, self._resize, self._cached_images = folder, resize, cached_images
        self._cached = functools.lru_cache(maxsize=cached_images)(self._read)

    def __reduce__(self) -> tuple:
        return PictureFolder, (self._folder, self._resize, self._cached_images)

    def photograph(self, path: str) -> Photograph:
        """Reads a picture.

        Args:
            path: its path below the folder.

        Raises:
            InputError: the file cannot be read, or is no picture.
        """
        return self._cached(path)

    def _read(self, path: str) -> Photograph:
        file = pathlib.Path(self._folder) / path
        try:
            return Photograph(file.read_bytes(), str(file), self._resize)
        except OSError as error:
            raise InputError(f"the picture {file} cannot be read: {error.strerror}.") from error
