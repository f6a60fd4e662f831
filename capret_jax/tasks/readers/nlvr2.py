"""Reader of sentences about two pictures: NLVR2.

[{"sentence": "...", "label": "True", "images": ["dev/a-img0.png", "dev/a-img1.png"],
"identifier": "dev-1-0-0"}, ...], the left picture first. Where the identifier is absent, the name
of the left picture and the number of the entry take its place. NLVR2's own files are JSON lines
that name no pictures; they have to be converted.
"""

from capret_jax.config.task import TaskConfig
from capret_jax.tasks.examples import PairSentence
from capret_jax.tasks.readers.annotations import (
    Entry,
    Examples,
    check_left_out,
    check_unique,
    join_files,
    keep_with_pictures,
    read_entries,
)

_LABELS = {"True": 1, "False": 0, True: 1, False: 0}


def read_training_sentences(config: TaskConfig) -> Examples[PairSentence]:
    """Reads the sentences to train on.

    Raises:
        InputError: a file cannot be read, or has another format.
    """
    return join_files(
        _with_pictures(
            [_sentence(e, number) for number, e in enumerate(read_entries(path))], config, path
        )
        for path in config.train
    )


def read_test_sentences(config: TaskConfig) -> Examples[PairSentence]:
    """Reads the sentences to evaluate on.

    Raises:
        InputError: the file cannot be read, has another format, or an identifier twice.
    """
    rows = [_sentence(entry, number) for number, entry in enumerate(read_entries(config.test))]
    check_unique((row.identifier for row in rows), "identifier", config.test)
    return _with_pictures(rows, config, config.test)


def _with_pictures(
    rows: list[PairSentence], config: TaskConfig, path: str
) -> Examples[PairSentence]:
    kept = keep_with_pictures(rows, lambda row: row.images, config.images)
    return check_left_out(kept, path, config.allow_missing)


def _sentence(entry: Entry, number: int) -> PairSentence:
    label, images = entry.value("label"), entry.texts("images")
    if not isinstance(label, str | bool) or label not in _LABELS:
        raise entry.error(f"has label={ascii(label)[:60]}, which is neither True nor False")
    if len(images) != 2:
        raise entry.error(f"has {len(images)} pictures where the left and the right are expected")
    name = entry.text("identifier") if entry.has("identifier") else f"{images[0]}-{number}"
    return PairSentence(images, entry.text("sentence"), _LABELS[label], name)
