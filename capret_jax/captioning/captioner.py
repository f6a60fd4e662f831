"""X2-VLM's own captions of images, by beam search or sampling."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from capret_jax.captioning.batched_model import BatchedModel
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.caption_generation import SpecialTokens, write_captions
from capret_jax.models.x2vlm import X2VLM, normalize_pixels

# Captions sampled of each image, to be condensed to one.
SAMPLED_CAPTIONS = 5
_BEAMS = 3


class Captioner:
    """Writes captions of images with the masked language model's head."""

    def __init__(self, model: BatchedModel, prompt: str = ""):
        """
        Args:
            model: a model whose masked language model was trained to write from left to right.
            prompt: words with which the model's texts begin, `ModelCard.prompt`; they are no part
                of the captions.

        Raises:
            InputError: the prompt leaves no room for a caption, or the vocabulary lacks its words.
        """
        self._model, self._tokenizer = model, model.encode.tokenizer
        length, cleaning = model.encode.max_tokens, model.encode.cleaning
        self._prompt = CaptionEncoder(self._tokenizer, length, cleaning, prompt).prompt_ids
        self._max_tokens = length - 1 - len(self._prompt)
        self._search = model.compile(functools.partial(self._write, beams=_BEAMS))
        self._sample = model.compile(functools.partial(self._write, beams=1))

    def caption(self, images: np.ndarray) -> list[str]:
        """Writes one caption per image by beam search; images are (n, S, S, 3) uint8."""
        return self._decode(self._search, images, np.zeros(len(images), np.uint32))

    def sample(self, images: np.ndarray, seeds: Sequence[int]) -> list[list[str]]:
        """Samples `SAMPLED_CAPTIONS` captions of each image from the model's distribution.

        Args:
            images: (n, S, S, 3) uint8.
            seeds: n seeds; the captions of an image depend on its seed, and not on other images.
        """
        first = np.asarray(seeds, np.uint32)
        rounds = [
            self._decode(self._sample, images, first + np.uint32(i))
            for i in range(SAMPLED_CAPTIONS)
        ]
        return [list(captions) for captions in zip(*rounds, strict=True)]

    def _write(self, model: X2VLM, images, seeds, *, beams: int) -> jax.Array:
        special = SpecialTokens(self._tokenizer.mask_token_id, self._tokenizer.sep_token_id)
        config = BeamConfig(beams=beams, max_tokens=self._max_tokens)
        states = model.encode_image(normalize_pixels(images))
        prompt = jnp.asarray(self._prompt)
        keys = jax.vmap(jax.random.key)(seeds) if beams == 1 else None
        return write_captions(model, states, prompt, special, config, keys=keys)[0]

    def _decode(self, write, images, seeds) -> list[str]:
        ids = self._model.call_in_batches(write, (images, seeds))
        return self._tokenizer.batch_decode(ids, skip_special_tokens=True)
