"""Captions of many items: thousands of conversations in flight, their questions in batches."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from capret_jax.batching import Batcher
from capret_jax.captioning.answerer import Answer, Answerer, Asked
from capret_jax.captioning.dialogue import Dialogue, DialogueConfig
from capret_jax.captioning.language_models import NoReply
from capret_jax.captioning.questioner import Questioner, Usage
from capret_jax.captioning.store import Key, Store
from capret_jax.data.questions import Question
from capret_jax.errors import InputError

# Items in a row without a reply, after which the language model is given up.
_GIVEN_UP = 16


class Tally(NamedTuple):
    """What a collection took.

    Attributes:
        items: finished in this run.
        already: finished before.
        unfinished: for which the language model gave no reply; another run goes on with them.
        questions: answered in this run.
        usage: of the language model, in this run.
        seconds: of it.
    """

    items: int
    already: int
    unfinished: int
    questions: int
    usage: Usage
    seconds: float


class Collector:
    """Holds a conversation about each of many items."""

    def __init__(
        self,
        answerer: Answerer,
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
        self._asked, self._silent = 0, 0
        self._spent = Usage()
        self._refused: list[str] = []

    def collect(self, keys: Sequence[Key], look: Callable[[Key], np.ndarray]) -> Tally:
        """Talks about every item that has no caption yet.

        Args:
            keys: the items.
            look: the picture of one, (S, S, 3) uint8.

        Raises:
            InputError: the language model replies to nothing any more.
        """
        return asyncio.run(self._collect(keys, look))

    async def _collect(self, keys, look) -> Tally:
        start = time.perf_counter()
        left = [key for key in keys if key not in self._store.finished]
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
            progress = tqdm(left, "captions", unit="item", leave=False)
            try:
                async for key, states in _read_ahead(left, read, slots):
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
        usage = self._spent._replace(refused=tuple(self._refused))
        done, seconds = len(left) - unfinished, time.perf_counter() - start
        return Tally(done, len(keys) - len(left), unfinished, self._asked, usage, seconds)

    async def _talk(self, key: Key, states: np.ndarray, answer: Batcher[Asked, Answer]) -> bool:
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
                found = await answer(Asked(states, asked.text, asked.answers))
                self._asked += 1
                dialogue.answer(*found)
                self._store.log(key, {"event": "answer", **found._asdict()})
            if caption is None:
                said = await self._questioner.sum_up(dialogue)
                caption = said.text or ""
                self._note(key, "caption", caption, said.usage, spent)
        except NoReply as error:
            self._silent += 1
            if self._silent >= _GIVEN_UP:
                raise InputError(
                    f"the questioner gave no reply {_GIVEN_UP} times in a row ({error}): mend it "
                    "and run the same command again, which goes on where this stopped."
                ) from error
            return False
        calls, read, written = _added(spent)[:3]
        self._store.finish(
            key,
            caption,
            turns=[vars(turn) for turn in dialogue.turns],
            calls=calls,
            prompt_tokens=read,
            completion_tokens=written,
        )
        return True

    def _note(self, key, event: str, text: str | None, usage: Usage, spent: list[Usage]) -> None:
        self._silent = 0
        self._spent = _added([self._spent, usage])
        self._refused += usage.refused
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


def _added(usages: Sequence[Usage]) -> Usage:
    """Calls and tokens together, without the replies that were refused."""
    return Usage(
        sum(usage.calls for usage in usages),
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
    )


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
    talks -= done
    return sum(not talk.result() for talk in done)
