"""Captions of many items: thousands of conversations in flight, their questions in batches."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from capret_jax.captioning.conversation import Dialogue, DialogueConfig
from capret_jax.captioning.questioner import (
    FailureCounter,
    NoAnswer,
    Questioner,
    Usage,
    log_refused,
    total,
)
from capret_jax.captioning.store import Key, Store
from capret_jax.captioning.vqa_answerer import Answer, VqaAnswerer, VqaQuery
from capret_jax.data.vqa import Question
from capret_jax.request_batcher import Batcher


class Collector:
    """Holds a conversation about each of many items."""

    def __init__(
        self,
        answerer: VqaAnswerer,
        questioner: Questioner,
        questions: Sequence[Question],
        config: DialogueConfig,
        store: Store,
        in_flight: int = 512,
    ):
        """
        Args:
            answerer: the model that sees.
            questioner: the one that asks.
            questions: that have lists of answers.
            config: when a conversation ends.
            store: what is done, and what was said.
            in_flight: conversations at once.
        """
        self._answerer, self._questioner, self._questions = answerer, questioner, questions
        self._config, self._store, self._in_flight = config, store, in_flight
        self._silence = FailureCounter()

    def collect(self, keys: Sequence[Key], look: Callable[[Key], np.ndarray]) -> int:
        """Talks about items that have no caption yet.

        Args:
            keys: the items.
            look: the picture of one, (S, S, 3) uint8.

        Returns:
            How many got none, since the language model gave no reply; another run goes on with
            them.

        Raises:
            InputError: the language model replies to nothing any more.
        """
        return asyncio.run(self._collect(keys, look))

    async def _collect(self, keys, look) -> int:
        # One thread for the model, one that reads pictures meanwhile.
        with ThreadPoolExecutor(1) as model, ThreadPoolExecutor(1) as reader:
            answer = Batcher(self._answerer, model, self._in_flight, waiting=0)
            answer.start()
            slots = asyncio.Semaphore(self._in_flight)
            loop = asyncio.get_running_loop()

            async def read(some: Sequence[Key]) -> np.ndarray:
                images = await loop.run_in_executor(reader, lambda: np.stack([*map(look, some)]))
                return await loop.run_in_executor(model, self._answerer.look, images)

            def leave(talk: asyncio.Task) -> None:
                slots.release()
                progress.update()

            unfinished = 0
            talks: set[asyncio.Task] = set()
            progress = tqdm(keys, "captions", unit="item", leave=False)
            try:
                async for key, states in _read_ahead(keys, read, slots):
                    talk = asyncio.create_task(self._talk(key, states, answer))
                    talk.add_done_callback(leave)
                    talks.add(talk)
                    unfinished += _take_done(talks)
                while talks:
                    await asyncio.wait(talks, return_when=asyncio.FIRST_COMPLETED)
                    unfinished += _take_done(talks)
            finally:
                for talk in talks:
                    talk.cancel()
                await asyncio.gather(*talks, return_exceptions=True)
                await answer.stop()
                await self._questioner.close()
                progress.close()
        return unfinished

    async def _talk(self, key: Key, states: np.ndarray, answer: Batcher[VqaQuery, Answer]) -> bool:
        """One conversation, from where it stopped; False when the questioner gave no reply."""
        dialogue, spent, caption = self._resumed(key)
        try:
            while not dialogue.finished():
                if dialogue.pending is None:
                    said = await self._questioner.ask(dialogue)
                    dialogue.ask(said.text)
                    self._note(key, "question", said.text, said.usage, spent)
                    continue
                asked = dialogue.to_answer(dialogue.pending)
                found = await answer(VqaQuery(states, asked.text, asked.answers))
                dialogue.answer(*found)
                self._store.log(key, {"event": "answer", **found._asdict()})
            if caption is None:
                said = await self._questioner.sum_up(dialogue)
                caption = said.text or ""
                self._note(key, "caption", caption, said.usage, spent)
        except NoAnswer as error:
            log_refused(self._store, key, error.usage)
            self._silence.goes_on(error)
            return False
        turns = [vars(turn) for turn in dialogue.turns]
        self._store.finish(key, caption, turns=turns, **total(spent))
        return True

    def _note(self, key, event: str, text: str | None, usage: Usage, spent: list[Usage]) -> None:
        self._silence.is_broken()
        spent.append(usage)
        cost = {"usage": usage._asdict()} if usage.calls else {}
        self._store.log(key, {"event": event, "text": text, **cost})

    def _resumed(self, key: Key) -> tuple[Dialogue, list[Usage], str | None]:
        dialogue, spent = Dialogue(self._questions, self._config), []
        caption = None
        for event in self._store.events(key):
            if event["event"] == "question":
                dialogue.ask(event["text"])
            elif event["event"] == "answer":
                dialogue.answer(event["text"], event["probability"])
            elif event["event"] == "caption":
                caption = event["text"]
            if "usage" in event:
                spent.append(Usage(**event["usage"]))
        return dialogue, spent, caption


async def _read_ahead(
    keys: Sequence[Key], read, slots: asyncio.Semaphore, chunk: int = 64
) -> AsyncIterator[tuple[Key, np.ndarray]]:
    """Items with their vision states, no more than there are slots for."""
    for start in range(0, len(keys), chunk):
        some = keys[start : start + chunk]
        for key, states in zip(some, await read(some), strict=True):
            await slots.acquire()
            yield key, states


def _take_done(talks: set[asyncio.Task]) -> int:
    """Removes what is done; how many of it failed."""
    done = {talk for talk in talks if talk.done()}
    broken = [error for talk in done if (error := talk.exception())]
    talks -= done
    if broken:
        raise broken[0]
    return sum(not talk.result() for talk in done)
