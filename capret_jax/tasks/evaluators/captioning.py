"""Captioning evaluator: captions by beam search, scored by BLEU-4 and CIDEr."""

from typing import Any

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.errors import InputError
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.caption_generation import SpecialTokens, write_captions
from capret_jax.models.x2vlm import X2VLM, normalize_pixels
from capret_jax.tasks.evaluators.inputs import EvaluationInputs, TaskResults
from capret_jax.tasks.evaluators.mesh_model import MeshFunction
from capret_jax.tasks.evaluators.pictures import picture_batches
from capret_jax.tasks.scorers.ngrams import bleu4, cider
from capret_jax.tasks.scorers.ptb import ptb_words


class CaptioningMeasurement:
    """Writes a caption of each picture after `data.captions.prompt`, without length penalty."""

    def __init__(self, run: EvaluationInputs):
        """
        Args:
            run: pictures with their captions, prompt, and settings of the search.

        Raises:
            InputError: the vocabulary lacks a word of the prompt, or the model has too few
                positions for prompt and caption.
        """
        task, tokenizer, model = run.config.task, run.encode.tokenizer, run.config.model
        self._run = run
        prompt, cleaning = run.config.data.captions.prompt, run.encode.cleaning
        prompted = CaptionEncoder(tokenizer, model.max_positions, cleaning, prompt)
        self._prompt = prompted.prompt_ids
        length = len(self._prompt) + task.max_tokens
        if length > model.max_positions:
            raise InputError(
                f"task.max_tokens={task.max_tokens} after {len(self._prompt)} tokens of the "
                f"prompt is more than model.max_positions={model.max_positions}: set at most "
                f"{model.max_positions - len(self._prompt)}."
            )
        self._special = SpecialTokens(tokenizer.mask_token_id, tokenizer.sep_token_id)
        self._search = BeamConfig(task.beams, task.min_tokens, task.max_tokens)
        self._write = MeshFunction(run.config, run.mesh, self._write_captions)

    def __call__(self, params: dict) -> TaskResults:
        """Describes all pictures; every process has to call it.

        Returns:
            "BLEU_4" and "CIDEr", "images", and "words", the mean number of words of a caption. The
            file `captions.json` is in COCO's result format, [{"image_id", "caption"}].
        """
        run, rows = self._run, self._run.test.rows
        tokenizer = run.encode.tokenizer
        batches = picture_batches(run, [row.image for row in rows])
        ids = self._write.by_row(params, batches, len(rows), (self._prompt,))
        captions = decode_captions(tokenizer, ids)
        words = [ptb_words(caption) for caption in captions]
        references = [[ptb_words(text) for text in row.captions] for row in rows]
        metrics: dict[str, Any] = {
            "BLEU_4": bleu4(words, references),
            "CIDEr": cider(words, references),
            "images": len(rows),
            "words": float(np.mean([*map(len, words)])),
        }
        results = [
            {"image_id": row.image_id, "caption": caption}
            for row, caption in zip(rows, captions, strict=True)
        ]
        return TaskResults(metrics, {"captions.json": results})

    def _write_captions(self, model: X2VLM, batch, prompt) -> jax.Array:
        image, _ = batch
        states = model.encode_image(normalize_pixels(image))
        return write_captions(model, states, prompt, self._special, self._search)[0]


def decode_captions(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> list[str]:
    """Joins (n, L) token ids to n captions, without spaces around apostrophes and before marks.

    "a man ' s hat" would have other words than the references' "man's".
    """
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
