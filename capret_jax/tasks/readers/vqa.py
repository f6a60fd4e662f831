"""Reader of visual questions: VQAv2 and Visual Genome.

VQAv2: [{"question_id": 1, "question": "...", "image": "a.jpg", "answer": [10 texts],
"dataset": "vqa"}, ...]; without "answer" in test files whose answers are not public.
Visual Genome, for training: the same with one text as "answer" and "dataset": "vg".
`answer_list.json`: ["yes", "no", ...], the answers that are ranked.
"""

import collections

from capret_jax.config.task import VQA_ANSWERS, TaskConfig
from capret_jax.errors import InputError
from capret_jax.tasks.examples import VisualQuestion
from capret_jax.tasks.readers.annotations import (
    Entry,
    Examples,
    check_left_out,
    check_unique,
    join_files,
    keep_with_pictures,
    load_json,
    read_entries,
)

# Weight of the answer of Visual Genome, in X-VLM and X2-VLM.
_GENOME_WEIGHT = 0.5


def read_training_questions(config: TaskConfig) -> Examples[VisualQuestion]:
    """Reads the questions to train on.

    Raises:
        InputError: a file cannot be read, or has questions without answers.
    """
    files = (
        _with_pictures([_question(entry, True) for entry in read_entries(path)], config, path)
        for path in config.train
    )
    return _checked(join_files(files), config, ", ".join(config.train))


def read_test_questions(config: TaskConfig) -> Examples[VisualQuestion]:
    """Reads the questions to evaluate on; all with answers, or none.

    Raises:
        InputError: the file cannot be read, only some questions have answers, an id repeats, or no
            answer is in the list.
    """
    rows = [_question(entry, False) for entry in read_entries(config.test)]
    check_unique((row.question_id for row in rows), "question_id", config.test)
    answered = sum(bool(row.answers) for row in rows)
    if answered not in (0, len(rows)):
        raise InputError(
            f"{config.test} has answers to {answered} of {len(rows)} questions: an accuracy would "
            "be of a part of the data."
        )
    return _checked(_with_pictures(rows, config, config.test), config, config.test)


def read_answers(path: str) -> tuple[str, ...]:
    """Reads the list of answers that are ranked.

    Raises:
        InputError: it cannot be read, is no list of texts, or has an answer twice.
    """
    answers = load_json(path)
    if not isinstance(answers, list) or not answers:
        raise InputError(f'{path} is no list of answers, such as ["yes", "no"].')
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        wrong = next(a for a in answers if not (isinstance(a, str) and a.strip()))
        raise InputError(f"{path} has {ascii(wrong)[:60]}, which is no answer.")
    check_unique(answers, "the answer", path)
    return tuple(answers)


def _question(entry: Entry, training: bool) -> VisualQuestion:
    """Returns a question with its answers, which only test files may lack."""
    answers: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    if entry.has("answer"):
        answers, weights = _answers(entry, training)
    elif training:
        raise entry.error("has no 'answer', as in a test file; task.train needs answers")
    return VisualQuestion(
        entry.text("image"),
        entry.number("question_id"),
        entry.text("question"),
        answers,
        weights,
    )


def _answers(entry: Entry, training: bool) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Returns the annotators' answers, and the weight of each distinct one."""
    dataset = entry.text("dataset") if entry.has("dataset") else "vqa"
    if dataset == "vg":
        if not training:
            raise entry.error("is of Visual Genome, which is for training alone")
        return (entry.text("answer"),), (_GENOME_WEIGHT,)
    if dataset != "vqa":
        raise entry.error(f"has dataset={dataset!r}, which is neither 'vqa' nor 'vg'")
    answers = entry.texts("answer")
    if len(answers) != VQA_ANSWERS:
        raise entry.error(
            f"has {len(answers)} answers where VQAv2 has {VQA_ANSWERS}, so that shares and "
            "accuracy would be others"
        )
    counts = collections.Counter(answers)
    return answers, tuple(count / len(answers) for count in counts.values())


def _with_pictures(
    rows: list[VisualQuestion], config: TaskConfig, path: str
) -> Examples[VisualQuestion]:
    kept = keep_with_pictures(rows, lambda row: (row.image,), config.images)
    return check_left_out(kept, path, config.allow_missing)


def _checked(
    examples: Examples[VisualQuestion], config: TaskConfig, files: str
) -> Examples[VisualQuestion]:
    """Counts the questions whose answers are not in the list."""
    listed = set(read_answers(config.answers))
    answered = [row for row in examples.rows if row.answers]
    unlisted = sum(listed.isdisjoint(row.answers) for row in answered)
    if not unlisted:
        return examples
    if unlisted == len(answered):
        raise InputError(
            f"no answer of {files} is in task.answers={config.answers}: it is the list of another "
            "dataset."
        )
    note = (
        f"{unlisted} of {len(answered)} questions of {files} have no answer in task.answers="
        f"{config.answers}: ranked answers cannot match."
    )
    return examples._replace(notes=(*examples.notes, note))
