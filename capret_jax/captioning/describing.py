"""Captions without a conversation: X2-VLM's own, or several of its own condensed into one (IC3)."""

import asyncio
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from capret_jax.captioning.beam_search import BeamConfig
from capret_jax.captioning.language_models import NoReply
from capret_jax.captioning.questioner import Prompted
from capret_jax.captioning.store import Key, Store
from capret_jax.captioning.writer import SpecialTokens, write_captions
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.models.config import PLAIN, ComputeConfig, ModelConfig
from capret_jax.models.x2vlm import abstract_model, bind, normalize_pixels

# Captions drawn of each picture, to be condensed.
DRAWN = 5
_PICTURES = 64


class Describer:
    """Pictures -> captions, by the model's captioner."""

    def __init__(
        self,
        model: ModelConfig,
        params: dict,
        encode: CaptionEncoder,
        compute: ComputeConfig = PLAIN,
    ):
        """
        Args:
            model: with a masked language model's head.
            params: the model's, trained to write captions.
            encode: texts -> tokens.
            compute: how the model is computed.
        """
        graphdef, _ = abstract_model(model, compute)
        self._params, self._tokenizer = params, encode.tokenizer
        special = SpecialTokens(encode.tokenizer.mask_token_id, encode.tokenizer.sep_token_id)
        prompt = np.array([encode.tokenizer.cls_token_id])
        longest = len(encode("").ids) - 2

        def write(params, images, key, beams):
            model = bind(graphdef, params, compute.dtype)
            config = BeamConfig(beams=beams, max_tokens=longest)
            states = model.encode_image(normalize_pixels(images))
            draw = key if beams == 1 else None
            return write_captions(model, states, jnp.asarray(prompt), special, config, draw)[0]

        self._write = jax.jit(write, static_argnums=3)

    def best(self, images: np.ndarray) -> list[str]:
        """(n, S, S, 3) uint8, n at most 64 -> n captions, by beam search."""
        return self._texts(images, jax.random.key(0), 3)

    def drawn(self, images: np.ndarray, seed: int) -> list[list[str]]:
        """(n, S, S, 3) uint8, n at most 64 -> `DRAWN` different captions of each."""
        keys = jax.random.split(jax.random.key(seed), DRAWN)
        rounds = [self._texts(images, key, 1) for key in keys]
        return [list(each) for each in zip(*rounds, strict=True)]

    def _texts(self, images, key, beams) -> list[str]:
        filled = np.concatenate([images, np.repeat(images[-1:], _PICTURES - len(images), axis=0)])
        ids = jax.device_get(self._write(self._params, filled, key, beams))[: len(images)]
        return self._tokenizer.batch_decode(ids, skip_special_tokens=True)


def describe(
    keys: Sequence[Key],
    look: Callable[[Key], np.ndarray],
    describer: Describer,
    store: Store,
    condenser: Prompted | None = None,
    seed: int = 0,
) -> int:
    """Describes every item that has no caption yet.

    Args:
        keys: the items.
        look: the picture of one, (S, S, 3) uint8.
        describer: the captioner.
        store: what is done.
        condenser: makes one caption of several that are drawn; the best one is taken without it.
        seed: of the draws.

    Returns:
        How many got none, since the language model gave no reply.
    """
    left = [key for key in keys if key not in store.finished]
    chunks = [left[i : i + _PICTURES] for i in range(0, len(left), _PICTURES)]

    async def run() -> int:
        unfinished = 0
        try:
            for number, chunk in enumerate(tqdm(chunks, "captions", leave=False)):
                images = np.stack([*map(look, chunk)])
                if condenser is None:
                    for key, caption in zip(chunk, describer.best(images), strict=True):
                        store.finish(key, caption)
                    continue
                drawn = describer.drawn(images, seed + number)
                talks = [
                    _condense(*each, condenser, store) for each in zip(chunk, drawn, strict=True)
                ]
                unfinished += sum(not done for done in await asyncio.gather(*talks))
        finally:
            if condenser is not None:
                await condenser.close()
        return unfinished

    return asyncio.run(run())


async def _condense(key: Key, drawn: list[str], condenser: Prompted, store: Store) -> bool:
    try:
        said = await condenser.condense(drawn)
    except NoReply:
        return False
    usage = said.usage._asdict()
    store.log(key, {"event": "caption", "text": said.text, "drawn": drawn, "usage": usage})
    store.finish(key, said.text or "", drawn=drawn, **{k: usage[k] for k in _COUNTED})
    return True


_COUNTED = ("calls", "prompt_tokens", "completion_tokens")
