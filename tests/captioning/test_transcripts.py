"""Conversations in plain text."""

from capret_jax.captioning.store import CaptionStore, ItemKey
from capret_jax.captioning.transcripts import format_conversations

KEY, OTHER = ItemKey("train", 7, 1), ItemKey("train", 8, 2)


def usage(*refused):
    return {"calls": 1, "prompt_tokens": 9, "completion_tokens": 2, "refused": refused}


def turn(question, answer, sure=True):
    names = {"question": question, "answer": answer, "source": "chosen", "topic": "colour"}
    return {**names, "probability": 0.876, "sure": sure, "new": sure}


def test_questions_refused_replies_and_captions_are_printed(tmp_path):
    out = tmp_path / "out.jsonl"
    store = CaptionStore(out, {"questioner": "test"})
    log = [
        ("question", "What colour?", usage("I am\x1b[2J a model.\n" + "very " * 50, "")),
        ("answer", "navy", {}),
        ("refused", None, usage("a server that failed later")),
        ("question", "What print?", usage()),
        ("answer", "dots", {}),
        ("question", None, usage()),
        ("caption", "A navy item.", usage("A red item.")),
    ]
    for event, text, cost in log:
        store.log(KEY, {"event": event, "text": text, "usage": cost})
    store.log(OTHER, {"event": "question", "text": "What?", "usage": usage("not shown")})
    turns = [turn("What colour?", "navy"), turn("What print?", "dots", sure=False)]
    store.finish(KEY, "A navy item.", caption_source="written", turns=turns)
    store.finish(OTHER, "An item.")
    store.close()
    text = format_conversations(out, 1)
    lines = text.splitlines()
    assert lines.pop(1).startswith("  refused: I am [2J a model. very") and "[...]" in text
    assert lines == [
        "train, image 7, item 1",
        "  refused: (empty)",
        "  What colour? [chosen] navy (88%)",
        "  refused: a server that failed later",
        "  What print? [chosen] dots (88%, no fact)",
        "  refused: A red item.",
        "  -> A navy item. [written]",
    ]
    end = "train, image 8, item 2\n  refused: not shown\n  -> An item."
    assert format_conversations(out, 2) == f"{text}\n\n{end}"
