"""Captions without a conversation: X2-VLM's own, or several of its own condensed into one (IC3)."""

import asyncio
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from capret_jax.captioning.questioner import (
    FailureCounter,
    NoAnswer,
    Prompted,
    Usage,
    log_refused,
    total,
)
from capret_jax.captioning.store import Key, Store
from capret_jax.config import ComputeConfig, ModelConfig
from capret_jax.config.model import PLAIN
from capret_jax.data.tokenizer import CaptionEncoder
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.caption_generation import SpecialTokens, write_captions
from capret_jax.models.x2vlm import abstract_model, bind, normalize_pixels

# Captions drawn of each picture, to be condensed.
DRAWN = 5
_BEAMS = 3


class Captioner:
    """Pictures -> captions, by the model's captioner."""

    def __init__(
        self,
        model: ModelConfig,
        params: dict,
        encode: CaptionEncoder,
        batch_size: int = 64,
        compute: ComputeConfig = PLAIN,
    ):
        """
        Args:
            model: with a masked language model's head.
            params: the model's, trained to write captions.
            encode: texts -> tokens.
            batch_size: pictures of one call.
            compute: how the model is computed.
        """
        graphdef, _ = abstract_model(model, compute)
        self._params, self._tokenizer, self._batch = params, encode.tokenizer, batch_size
        special = SpecialTokens(encode.tokenizer.mask_token_id, encode.tokenizer.sep_token_id)
        prompt = np.array([encode.tokenizer.cls_token_id])
        longest = len(encode("").ids) - 2

        def write(params, images, seeds, beams):
            model = bind(graphdef, params, compute.dtype)
            config = BeamConfig(beams=beams, max_tokens=longest)
            states = model.encode_image(normalize_pixels(images))
            keys = jax.vmap(jax.random.key)(seeds) if beams == 1 else None
            return write_captions(model, states, jnp.asarray(prompt), special, config, keys)[0]

        self._write = jax.jit(write, static_argnums=3)

    def best(self, images: np.ndarray) -> list[str]:
        """(n, S, S, 3) uint8 -> n captions, by beam search."""
        return self._texts(images, np.zeros(len(images), np.uint32), _BEAMS)

    def drawn(self, images: np.ndarray, seeds: Sequence[int]) -> list[list[str]]:
        """`DRAWN` captions of each picture, from the model's distribution.

        Args:
            images: (n, S, S, 3) uint8.
            seeds: n of them: a picture's draws depend on its own, and on nothing beside it.
        """
        first = np.asarray(seeds, np.uint32)
        rounds = [self._texts(images, first + np.uint32(i), 1) for i in range(DRAWN)]
        return [list(each) for each in zip(*rounds, strict=True)]

    def _texts(self, images, seeds, beams) -> list[str]:
        texts = []
        for start in range(0, len(images), self._batch):
            rows = np.arange(start, start + self._batch).clip(max=len(images) - 1)
            ids = jax.device_get(self._write(self._params, images[rows], seeds[rows], beams))
            ids = ids[: len(images) - start]
            texts += self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts


def describe(
    keys: Sequence[Key],
    look: Callable[[Key], np.ndarray],
    describer: Captioner,
    store: Store,
    condenser: Prompted | None = None,
    in_flight: int = 512,
) -> int:
    """Describes items that have no caption yet.

    Args:
        keys: the items.
        look: the picture of one, (S, S, 3) uint8.
        describer: the captioner.
        store: what is done.
        condenser: makes one caption of several that are drawn; the best one is taken without it.
        in_flight: items at once.

    Returns:
        How many got none, since the language model gave no reply.

    Raises:
        InputError: the language model replies to nothing any more.
    """
    return asyncio.run(_describe(keys, look, describer, store, condenser, in_flight))


async def _describe(keys, look, describer, store, condenser, in_flight) -> int:
    unfinished, silence = 0, FailureCounter()
    progress = tqdm(keys, "captions", unit="item", leave=False)
    try:
        for start in range(0, len(keys), in_flight):
            chunk = keys[start : start + in_flight]
            images = np.stack([*map(look, chunk)])
            if condenser is None:
                for key, caption in zip(chunk, describer.best(images), strict=True):
                    store.finish(key, caption)
            else:
                drawn = describer.drawn(images, [*map(_seed_of, chunk)])
                talks = [
                    _condense(*each, condenser, store, silence)
                    for each in zip(chunk, drawn, strict=True)
                ]
                unfinished += sum(not done for done in await asyncio.gather(*talks))
            progress.update(len(chunk))
    finally:
        progress.close()
        if condenser is not None:
            await condenser.close()
    return unfinished


def _seed_of(key: Key) -> int:
    return zlib.crc32(repr(tuple(key)).encode())


async def _condense(
    key: Key, drawn: list[str], condenser: Prompted, store: Store, silence: FailureCounter
) -> bool:
    spent = [Usage(**event["usage"]) for event in store.events(key)]
    written = [event["text"] for event in store.events(key) if event["event"] == "caption"]
    if not written:
        try:
            said = await condenser.condense(drawn)
        except NoAnswer as error:
            log_refused(store, key, error.usage)
            silence.goes_on(error)
            return False
        silence.is_broken()
        spent.append(said.usage)
        written = [said.text or ""]
        event = {"event": "caption", "text": written[0], "drawn": drawn}
        store.log(key, {**event, "usage": said.usage._asdict()})
    store.finish(key, written[0], drawn=drawn, **total(spent))
    return True
