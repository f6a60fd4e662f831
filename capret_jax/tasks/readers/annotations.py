"""Annotation files: JSON lists of objects, and the pictures that they name."""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from capret_jax.errors import InputError

Example = TypeVar("Example")
# Largest share of a file's examples that may be left out; the rest is another file's fault.
LARGEST_LOSS = 0.01


class Examples(NamedTuple, Generic[Example]):
    """The examples of a split.

    Attributes:
        rows: the examples, in the order of the files.
        left_out: number of annotated examples that are not among them.
        notes: lines for the console about what was left out, or cannot be right.
    """

    rows: tuple[Example, ...]
    left_out: int = 0
    notes: tuple[str, ...] = ()


class Entry:
    """One object of an annotation file, whose values are checked when they are read."""

    def __init__(self, values: Any, path: str, number: int):
        """
        Args:
            values: the object.
            path: the file.
            number: index of the object in the file, from 0.

        Raises:
            InputError: it is no object.
        """
        self._values, self._path, self._number = values, path, number
        if not isinstance(values, dict):
            raise self.error(f"is a {type(values).__name__} where an object is expected")

    def error(self, problem: str) -> InputError:
        """Returns the error for this entry: file, index and problem."""
        return InputError(f"{self._path}: entry {self._number} {problem}.")

    def has(self, key: str) -> bool:
        """Returns True if there is a value, and it is not null."""
        return self._values.get(key) is not None

    def value(self, key: str) -> Any:
        """Returns any value.

        Raises:
            InputError: there is none.
        """
        if not self.has(key):
            keys = ", ".join(map(str, self._values)) or "nothing"
            raise self.error(f"has no {key!r} (it has {keys}): the file has another format")
        return self._values[key]

    def text(self, key: str) -> str:
        """Returns a text that is not blank.

        Raises:
            InputError: there is none.
        """
        value = self.value(key)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"has {key}={ascii(value)[:60]} where a text is expected")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Returns a list of texts that are not blank, at least one.

        Raises:
            InputError: there is none.
        """
        value = self.value(key)
        if not isinstance(value, list) or not value:
            raise self.error(f"has {key}={ascii(value)[:60]} where a list of texts is expected")
        if not all(isinstance(text, str) and text.strip() for text in value):
            raise self.error(f"has a {key} that is no text: {ascii(value)[:60]}")
        return tuple(value)

    def identifier(self, key: str) -> int | str:
        """Returns a whole number or a text.

        Raises:
            InputError: there is neither.
        """
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self.error(f"has {key}={ascii(value)[:60]} where an id is expected")
        return value

    def number(self, key: str) -> int:
        """Returns a whole number.

        Raises:
            InputError: there is none.
        """
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"has {key}={ascii(value)[:60]} where a whole number is expected")
        return value


def load_json(path: str) -> Any:
    """Loads a JSON file.

    Raises:
        InputError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no JSON file ({error}); JSON lines and other formats have to be converted "
            "to one list."
        ) from error


def read_entries(path: str) -> Iterator[Entry]:
    """Yields the objects of an annotation file, a JSON list.

    Raises:
        InputError: the file cannot be read, or is no list of objects, or is empty.
    """
    values = load_json(path)
    if not isinstance(values, list) or not values:
        kind = "an empty list" if values == [] else f"a {type(values).__name__}"
        raise InputError(f"{path} holds {kind} where a list of examples is expected.")
    for number, value in enumerate(values):
        yield Entry(value, path, number)


def check_unique(values: Iterable[Any], name: str, path: str) -> None:
    """Checks that ids do not repeat.

    Raises:
        InputError: one does; the message names it.
    """
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise InputError(f"{path} has {name} {value!r} twice: results would be ambiguous.")
        seen.add(value)


def keep_with_pictures(
    rows: Sequence[Example],
    pictures: Callable[[Example], Sequence[str]],
    folder: str,
) -> Examples[Example]:
    """Leaves out the examples whose pictures are missing; `check_left_out` has the limit.

    Args:
        rows: the examples.
        pictures: paths of an example's pictures, below the folder.
        folder: folder of pictures, `task.images`.

    Raises:
        InputError: a path leaves the folder.
    """
    found: dict[str, bool] = {}
    for row in rows:
        for path in pictures(row):
            if path not in found:
                _check_inside(path)
                found[path] = os.path.isfile(os.path.join(folder, path))
    kept = [row for row in rows if all(found[path] for path in pictures(row))]
    missing = [path for path, there in found.items() if not there]
    reason = f"of {len(missing)} missing pictures in task.images={folder}"
    example = f", such as {missing[0]}" if missing else ""
    return leave_out(kept, len(rows), reason + example)


def leave_out(kept: Sequence[Example], count: int, reason: str) -> Examples[Example]:
    """Makes the examples of a split of which some are left out.

    Args:
        kept: the examples that stay.
        count: number of annotated examples.
        reason: why others do not, after "because".
    """
    lost = count - len(kept)
    line = f"{lost} of {count} examples are left out, because {reason}."
    return Examples(tuple(kept), lost, (line,) if lost else ())


def check_left_out(
    examples: Examples[Example], path: str, allow_missing: bool
) -> Examples[Example]:
    """Returns the examples of a file, with its path in the notes, if enough of them are left.

    Args:
        examples: the examples of one file, with what was left out for all reasons.
        path: the file.
        allow_missing: True to accept that more than `LARGEST_LOSS` are left out.

    Raises:
        InputError: too many are left out, or all.
    """
    lost, line = examples.left_out, f"{path}: {' '.join(examples.notes)}"
    if lost and not examples.rows:
        raise InputError(f"{line} Name the right files.")
    if lost > LARGEST_LOSS * (lost + len(examples.rows)) and not allow_missing:
        raise InputError(
            f"{line} Name the right files, or set --config.task.allow_missing=True to go on "
            "without them."
        )
    return examples._replace(notes=tuple(f"{path}: {note}" for note in examples.notes))


def join_files(files: Iterable[Examples[Example]]) -> Examples[Example]:
    """Joins the examples of several files to one split."""
    parts = list(files)
    return Examples(
        tuple(row for part in parts for row in part.rows),
        sum(part.left_out for part in parts),
        tuple(note for part in parts for note in part.notes),
    )


def _check_inside(path: str) -> None:
    if os.path.isabs(path) or ".." in pathlib.PurePath(path).parts:
        raise InputError(
            f"the picture {path!r} is outside of task.images: paths must start from this folder."
        )
