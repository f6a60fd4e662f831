"""Files of a collection of captions: the finished items, and a journal of all events.

Both are JSON lines. OUT has a line for each finished item, with "split", "image_id", "item",
"caption" and its history; `data.captions.file` reads it. OUT.journal has every question, answer and
refused reply. Those of a language model are written as soon as they arrive, so that a stopped
collection resumes in the middle of its conversations. The journal's first line has the settings.
"""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

from capret_jax.errors import InputError


class ItemKey(NamedTuple):
    """The key of an item: its split, its image, and n of the annotation's item<n>."""

    split: str
    image_id: int
    item: int


Event = dict[str, Any]
# Costs of a language model in a finished line.
COST_KEYS = ("calls", "prompt_tokens", "completion_tokens", "refused")


class CaptionStore:
    """The two files of a collection, open in one program at a time.

    Attributes:
        finished: keys of the items in OUT.
    """

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any]):
        """
        Args:
            path: OUT; an existing file is continued.
            settings: settings of this collection; an existing journal must have the same.

        Raises:
            InputError: the files cannot be written or are something else, another program has them
                open, or they were begun with other settings.
        """
        self._path = pathlib.Path(path)
        journal = journal_path(path)
        with contextlib.ExitStack() as files:  # closes the files after an error
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._out = files.enter_context(self._path.open("a"))
                self._journal = files.enter_context(journal.open("a"))
            except OSError as error:
                raise InputError(f"--out={path} cannot be written: {error.strerror}.") from error
            try:
                fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"--out={path} is being written by another program.") from error
            for file in (self._path, journal):
                _truncate_partial_line(file)
            self.finished = {key_of(line) for line in read_lines(self._path)}
            events = read_lines(journal)
            if (begun := next(events, None)) is not None:
                _require_same_settings(begun, settings, self._path)
            elif self.finished:
                raise InputError(
                    f"{journal} is gone, which has the settings of --out={path}: choose another "
                    "--out."
                )
            else:
                _append(self._journal, settings)
            self._events: dict[ItemKey, list[Event]] = {}
            for event in events:
                # Most events belong to finished items and are not needed again.
                if (key := key_of(event)) not in self.finished:
                    self._events.setdefault(key, []).append(event)
            self._files = files.pop_all()

    def events(self, key: ItemKey) -> list[Event]:
        """Returns the events of an item that was unfinished when the store was opened, in order."""
        return self._events.get(key, [])

    def log(self, key: ItemKey, event: Event) -> None:
        """Appends an event of an item to the journal; flushed at once if it has a "usage"."""
        _append(self._journal, {**key._asdict(), **event}, flush="usage" in event)

    def finish(self, key: ItemKey, caption: str, **details: Any) -> None:
        """Appends an item's caption and its history to OUT."""
        self._journal.flush()
        _append(self._out, {**key._asdict(), "caption": caption, **details})
        self.finished.add(key)
        self._events.pop(key, None)

    def lines(self) -> Iterator[tuple[ItemKey, Event]]:
        """Reads the lines of all finished items from the disk."""
        return ((key_of(line), line) for line in read_lines(self._path))

    def close(self) -> None:
        """Closes the files and releases the lock."""
        self._files.close()


def journal_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path of the journal of a collection OUT."""
    return pathlib.Path(f"{path}.journal")


def _append(file: TextIO, line: dict, flush: bool = True) -> None:
    """Appends a line. Lines with a cost are flushed; a killed program may lose the others."""
    file.write(json.dumps(line) + "\n")
    if flush:
        file.flush()


def _truncate_partial_line(path: pathlib.Path) -> None:
    """Removes an incomplete last line, which a killed program left."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
    os.truncate(path, end)


def read_lines(path: str | os.PathLike) -> Iterator[dict]:
    """Yields one line at a time: those of a whole dataset do not fit into memory."""
    with open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{path}, line {number} is no line of a collection ({error}): choose another "
                    "--out."
                ) from error
            yield entry


def key_of(line: dict) -> ItemKey:
    """Returns the key of a line of OUT or of its journal."""
    try:
        return ItemKey(str(line["split"]), int(line["image_id"]), int(line["item"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"a line of the collection names no item ({error!r}): choose another --out."
        ) from error


def _require_same_settings(before: dict, now: dict, path: pathlib.Path) -> None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"--out={path} was begun with {name}={before.get(name)!r} and this is "
                f"{now.get(name)!r}: choose another --out, or set it back."
            )
