"""Conversations in plain text, from the files of a collection."""

import itertools
import os
import textwrap
from collections.abc import Iterable, Iterator

from capret_jax.captioning.reply_text import clean_line
from capret_jax.captioning.store import Event, ItemKey, journal_path, key_of, read_lines

# Characters of a refused reply that are printed.
_REFUSED_CHARS = 100


def format_conversations(path: str | os.PathLike, count: int) -> str:
    """Formats the first conversations of a collection: questions, refused replies and caption.

    Args:
        path: OUT of the collection.
        count: number of conversations.
    """
    lines = {key_of(line): line for line in itertools.islice(read_lines(path), count)}
    refused: dict[ItemKey, list[list[str]]] = {key: [[]] for key in lines}
    events = itertools.islice(read_lines(journal_path(path)), 1, None)  # after the settings
    for event in events:
        if (key := key_of(event)) in refused:
            _add_refusals(refused[key], event)
    return "\n\n".join(
        "\n".join(_format_item(key, line, refused[key])) for key, line in lines.items()
    )


def _add_refusals(refused: list[list[str]], event: Event) -> None:
    """Adds an event's refused replies to those of the text that they were written for."""
    refused[-1].extend(event.get("usage", {}).get("refused", ()))
    if event["event"] in ("question", "caption"):
        refused.append([])


def _format_item(key: ItemKey, line: Event, refused: list[list[str]]) -> Iterator[str]:
    yield f"{key.split}, image {key.image_id}, item {key.item}"
    replies = iter(refused)
    for turn in line.get("turns", ()):
        yield from _format_refused(next(replies, ()))
        known = "" if turn["sure"] else ", no fact"
        answer = f"{turn['answer']} ({turn['probability']:.0%}{known})"
        yield f"  {turn['question']} [{turn['source']}] {answer}"
    # What is left belongs to the end of the questions, and to the caption.
    yield from _format_refused(itertools.chain.from_iterable(replies))
    source = f" [{line['caption_source']}]" if "caption_source" in line else ""
    yield f"  -> {line['caption']}{source}"


def _format_refused(replies: Iterable[str]) -> Iterator[str]:
    for reply in replies:
        text = textwrap.shorten(clean_line(reply, 10 * _REFUSED_CHARS), _REFUSED_CHARS)
        yield f"  refused: {text or '(empty)'}"
