"""NLVR2 evaluator: accuracy of sentences about two pictures."""

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.models.x2vlm import X2VLM, normalize_pixels
from capret_jax.tasks.evaluators.inputs import EvaluationInputs, TaskResults
from capret_jax.tasks.evaluators.mesh_model import MeshFunction
from capret_jax.tasks.evaluators.pictures import picture_batches
from capret_jax.tasks.evaluators.texts import stack_tokens


class Nlvr2Measurement:
    """Judges whether each sentence is true of its two pictures."""

    def __init__(self, run: EvaluationInputs):
        self._run, self._judge = run, MeshFunction(run.config, run.mesh, _judge)

    def __call__(self, params: dict) -> TaskResults:
        """Judges all sentences; every process has to call it.

        Returns:
            "accuracy" and "sentences"; the file `judgements.json` has
            [{"identifier", "prediction": "True" or "False"}].
        """
        run, rows = self._run, self._run.test.rows
        tokens = stack_tokens(run.encode, [row.sentence for row in rows])
        left = picture_batches(run, [row.images[0] for row in rows], tuple(tokens))
        right = picture_batches(run, [row.images[1] for row in rows])
        is_true = self._judge.by_row(params, zip(left, right, strict=True), len(rows))
        labels = np.array([row.label for row in rows])
        metrics = {"accuracy": float((is_true == labels).mean()), "sentences": len(rows)}
        judgements = [
            {"identifier": row.identifier, "prediction": str(bool(value))}
            for row, value in zip(rows, is_true, strict=True)
        ]
        return TaskResults(metrics, {"judgements.json": judgements})


def _judge(model: X2VLM, batch) -> jax.Array:
    """Returns (B,) bool, True where the model takes the sentence for true."""
    (left, (ids, mask)), (right, _) = batch
    images = jnp.stack([left, right], axis=1).reshape(-1, *left.shape[1:])
    text = model.encode_text(ids, mask)
    # Each sentence is fused with both pictures.
    states, token_mask = (jnp.repeat(x, 2, axis=0) for x in (text, mask))
    fused = model.fuse(states, token_mask, model.encode_image(normalize_pixels(images)))
    logits = model.pair_logits(fused.reshape(len(ids), 2, *fused.shape[1:]))
    return logits[:, 1] > logits[:, 0]
