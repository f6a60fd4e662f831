"""What was asked, answered and concluded, on disk as it happens.

Two files of JSON lines. OUT has a line for each finished item, with "split", "image_id", "item",
"caption" and how it came about: what `data.captions.file` reads. OUT.journal has every question,
answer and refused reply, those of a language model the moment they are there, so that a stopped
collection goes on in the middle of its conversations; its first line says what was collected and
how.
"""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

from capret_jax.errors import InputError


class Key(NamedTuple):
    """An item: the n of the annotation's item<n> in an image of a split."""

    split: str
    image_id: int
    item: int


Event = dict[str, Any]
# What a finished line counts of a language model.
COUNTED = ("calls", "prompt_tokens", "completion_tokens", "refused")


class Store:
    """One collection of captions, open for one program at a time.

    Attributes:
        finished: the items of OUT.
    """

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any]):
        """
        Args:
            path: OUT; goes on where it ends.
            settings: of this collection; must be those it was begun with.

        Raises:
            InputError: the files cannot be written or are something else, another program has them
                open, or they were begun with other settings.
        """
        self._path = pathlib.Path(path)
        journal = self._path.with_name(self._path.name + ".journal")
        with contextlib.ExitStack() as files:  # closes them when one is refused
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
                _cut_half_a_line(file)
            self.finished = {_key(line) for line in _read(self._path)}
            events = _read(journal)
            if (begun := next(events, None)) is not None:
                _check_same(begun, settings, self._path)
            elif self.finished:
                raise InputError(
                    f"{journal} is gone, which says how --out={path} was begun: choose another "
                    "--out."
                )
            else:
                _append(self._journal, settings)
            self._events: dict[Key, list[Event]] = {}
            for event in events:
                # Most conversations are over, and nobody asks for them again.
                if (key := _key(event)) not in self.finished:
                    self._events.setdefault(key, []).append(event)
            self._files = files.pop_all()

    def events(self, key: Key) -> list[Event]:
        """What has happened to an unfinished item so far."""
        return self._events.get(key, [])

    def log(self, key: Key, event: Event) -> None:
        """Keeps what has just happened to an item: at once if it was paid for, with "usage"."""
        _append(self._journal, {**key._asdict(), **event}, at_once="usage" in event)

    def finish(self, key: Key, caption: str, **more: Any) -> None:
        """Keeps an item's caption, and how it came about."""
        self._journal.flush()
        _append(self._out, {**key._asdict(), "caption": caption, **more})
        self.finished.add(key)
        self._events.pop(key, None)

    def lines(self) -> Iterator[tuple[Key, Event]]:
        """What is kept of every finished item, from the disk."""
        return ((_key(line), line) for line in _read(self._path))

    def close(self) -> None:
        """Lets others open it."""
        self._files.close()


def _append(file: TextIO, line: dict, at_once: bool = True) -> None:
    """A killed program loses nothing that it has paid for; what costs nothing is said again."""
    file.write(json.dumps(line) + "\n")
    if at_once:
        file.flush()


def _cut_half_a_line(path: pathlib.Path) -> None:
    """What a kill left of the last one."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
    os.truncate(path, end)


def _read(path: pathlib.Path) -> Iterator[dict]:
    """One line after the other: a dataset's do not fit into memory."""
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError("no object")
            except ValueError as error:
                raise InputError(
                    f"{path}, line {number} is no line of a collection ({error}): choose another "
                    "--out."
                ) from error
            yield entry


def _key(line: dict) -> Key:
    try:
        return Key(str(line["split"]), int(line["image_id"]), int(line["item"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"a line of the collection names no item ({error!r}): choose another --out."
        ) from error


def _check_same(before: dict, now: dict, path: pathlib.Path) -> None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"--out={path} was begun with {name}={before.get(name)!r} and this is "
                f"{now.get(name)!r}: choose another --out, or set it back."
            )
