"""Caption generation without a conversation: X2-VLM's captions, or several condensed to one."""

import asyncio
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from capret_jax.captioning.captioner import Captioner
from capret_jax.captioning.prompted_questioner import PromptedQuestioner
from capret_jax.captioning.questioner import (
    FailureCounter,
    QuestionerError,
    Usage,
    log_failure,
    total_usage,
)
from capret_jax.captioning.store import CaptionStore, ItemKey


class CaptionerRunner:
    """Captions items with X2-VLM's captioner, or condenses several of its captions (IC3)."""

    def __init__(
        self,
        captioner: Captioner,
        store: CaptionStore,
        condenser: PromptedQuestioner | None = None,
        in_flight: int = 512,
    ):
        """
        Args:
            captioner: the captioning model.
            store: the store of finished items.
            condenser: condenses several sampled captions to one; None takes the caption of the
                beam search.
            in_flight: items at once.
        """
        self._captioner, self._store, self._condenser = captioner, store, condenser
        self._in_flight = in_flight
        self._failures = FailureCounter()

    def run(self, keys: Sequence[ItemKey], read_crop: Callable[[ItemKey], np.ndarray]) -> int:
        """Captions items that have no caption yet.

        Args:
            keys: the items.
            read_crop: key -> crop of the item, (S, S, 3) uint8.

        Returns:
            The number of items without a caption, since the language model gave no reply.

        Raises:
            InputError: the language model gave no reply many times in a row.
        """
        return asyncio.run(self._run(keys, read_crop))

    async def _run(self, keys, read_crop) -> int:
        unfinished = 0
        progress = tqdm(keys, "captions", unit="item", leave=False)
        try:
            for start in range(0, len(keys), self._in_flight):
                chunk = keys[start : start + self._in_flight]
                images = np.stack([*map(read_crop, chunk)])
                if self._condenser is None:
                    captions = self._captioner.caption(images)
                    for key, caption in zip(chunk, captions, strict=True):
                        self._store.finish(key, caption)
                else:
                    unfinished += await self._condense_all(self._condenser, chunk, images)
                progress.update(len(chunk))
        finally:
            progress.close()
            if self._condenser is not None:
                await self._condenser.close()
        return unfinished

    async def _condense_all(self, condenser, keys: Sequence[ItemKey], images: np.ndarray) -> int:
        sampled = self._captioner.sample(images, [*map(_seed_of, keys)])
        tasks = [
            self._condense(condenser, key, captions)
            for key, captions in zip(keys, sampled, strict=True)
        ]
        return sum(not done for done in await asyncio.gather(*tasks))

    async def _condense(
        self, condenser: PromptedQuestioner, key: ItemKey, sampled: list[str]
    ) -> bool:
        events = self._store.events(key)
        usages = [Usage(**event["usage"]) for event in events]
        captions = [event["text"] for event in events if event["event"] == "caption"]
        if not captions:
            try:
                reply = await condenser.condense(sampled)
            except QuestionerError as error:
                log_failure(self._store, key, error)
                self._failures.record_failure(error)
                return False
            self._failures.reset()
            usages.append(reply.usage)
            captions = [reply.text or ""]
            event = {"event": "caption", "text": captions[0], "drawn": sampled}
            self._store.log(key, {**event, "usage": reply.usage._asdict()})
        self._store.finish(key, captions[0], drawn=sampled, **total_usage(usages))
        return True


def _seed_of(key: ItemKey) -> int:
    return zlib.crc32(repr(tuple(key)).encode())
