"""VQA evaluator: ranks a list of answers for each question."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.data.vqa import (
    MAX_ANSWER_TOKENS,
    TEST_QUESTION_WORDS,
    answer_encoder,
    question_encoder,
)
from capret_jax.models.answer_generation import Answers, FusedQuestions, rank_answers
from capret_jax.models.x2vlm import X2VLM, normalize_pixels
from capret_jax.tasks.evaluators.grouping import PictureGroups
from capret_jax.tasks.evaluators.inputs import EvaluationInputs, TaskResults
from capret_jax.tasks.evaluators.mesh_model import MeshFunction
from capret_jax.tasks.evaluators.pictures import picture_batches
from capret_jax.tasks.evaluators.texts import stack_tokens
from capret_jax.tasks.examples import VisualQuestion
from capret_jax.tasks.readers.vqa import read_answers
from capret_jax.tasks.scorers.vqa import vqa_accuracy

# Questions that are answered about a picture at a time.
_QUESTIONS = 4


class VqaMeasurement:
    """Answers each question with the best of `task.answers`, as X2-VLM's evaluation does."""

    def __init__(self, run: EvaluationInputs):
        """
        Args:
            run: the questions, and the list of answers.

        Raises:
            InputError: the list cannot be read.
        """
        self._run, self._answers = run, read_answers(run.config.task.answers)
        self._k = min(run.config.task.answers_ranked, len(self._answers))
        self._choose = MeshFunction(run.config, run.mesh, self._choose_answers)

    def __call__(self, params: dict) -> TaskResults:
        """Answers all questions; every process has to call it.

        Returns:
            "questions"; "accuracy" where the annotations have answers, and "unlisted", the number
            of questions none of whose answers is in the list; "answers_listed" and
            "answers_ranked". The file `result.json` is in VQAv2's format,
            [{"question_id", "answer"}].
        """
        run, rows = self._run, self._run.test.rows
        groups = PictureGroups([row.image for row in rows], _QUESTIONS)
        most = run.config.model.max_positions
        encode = question_encoder(run.encode, TEST_QUESTION_WORDS, most)
        questions = stack_tokens(encode, [row.question for row in rows])
        listed = stack_tokens(
            answer_encoder(run.encode, min(MAX_ANSWER_TOKENS, most)), self._answers
        )
        texts = [x[groups.rows] for x in questions]
        batches = picture_batches(run, groups.paths, texts)
        best = self._choose.by_row(params, batches, len(groups.paths), tuple(listed))
        answers = [self._answers[row] for row in groups.by_text(best)]
        metrics: dict[str, Any] = {
            "questions": len(rows),
            "answers_listed": len(self._answers),
            "answers_ranked": self._k,
        }
        if all(row.answers for row in rows):
            metrics |= self._accuracy(rows, answers)
        results = [
            {"question_id": row.question_id, "answer": answer}
            for row, answer in zip(rows, answers, strict=True)
        ]
        return TaskResults(metrics, {"result.json": results})

    def _accuracy(self, rows: tuple[VisualQuestion, ...], answers: list[str]) -> dict[str, Any]:
        accuracies = [vqa_accuracy(a, row.answers) for row, a in zip(rows, answers, strict=True)]
        listed = set(self._answers)
        unlisted = sum(listed.isdisjoint(row.answers) for row in rows)
        return {"accuracy": float(np.mean(accuracies)), "unlisted": unlisted}

    def _choose_answers(self, model: X2VLM, batch, ids, mask) -> jax.Array:
        image, questions = batch
        flat = [x.reshape(-1, x.shape[-1]) for x in questions]
        text = model.encode_text(*flat)
        fused = model.fuse(text, flat[1], model.encode_image(normalize_pixels(image)))
        shape = questions[0].shape[:2]
        states, masks = (
            jnp.moveaxis(x.reshape(*shape, *x.shape[1:]), 1, 0) for x in (fused, flat[1])
        )

        # One question of each picture at a time: logits of all words, for k answers of each, are
        # the largest arrays of an evaluation.
        def best(question):
            ranked, _ = rank_answers(model, Answers(ids, mask), FusedQuestions(*question), self._k)
            return ranked[:, 0]

        return jax.lax.map(best, (states, masks)).T
