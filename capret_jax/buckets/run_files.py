"""The small files of a run: on its disk, or on this machine's disk with copies in its bucket."""

import pathlib
import shutil
import tempfile
import weakref

import jax

from capret_jax.buckets.access import read_small_files, write_files
from capret_jax.buckets.urls import url_scheme


class RunFiles:
    """Metrics, vocabulary and evaluation of a run; everything but its checkpoints.

    Buckets have neither appending nor renaming, so these files are written on a disk, and copied to
    the bucket whenever they have changed.

    Attributes:
        folder: folder on a disk to write to: the workdir, unless that is in a bucket.
    """

    def __init__(self, workdir: pathlib.Path):
        """
        Args:
            workdir: folder of the run, on a disk or in a bucket.

        Raises:
            InputError: the bucket cannot be read.
        """
        self.folder, self._url = workdir, ""
        if url_scheme(workdir):
            self._url = str(workdir)
            self.folder = pathlib.Path(tempfile.mkdtemp(prefix="capret-run-"))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
            read_small_files(self._url, self.folder)
            self._copied = self._versions()

    def publish(self, replaced: str = "") -> None:
        """Copies the files that have changed to the bucket; process 0 does so for all.

        Args:
            replaced: a folder of results, whose older files in the bucket are deleted.

        Raises:
            InputError: the bucket cannot be written.
        """
        if not self._url or jax.process_index() != 0:
            return
        versions = self._versions()
        changed = {
            name: self.folder / name
            for name, version in versions.items()
            if version != self._copied.get(name) or (replaced and name.startswith(f"{replaced}/"))
        }
        write_files(self._url, changed, replaced)
        self._copied = versions

    def _versions(self) -> dict[str, tuple[int, int]]:
        """Returns relative name -> size and time of change."""
        return {
            str(path.relative_to(self.folder)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
