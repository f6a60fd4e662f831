"""Caption generation by conversations: hundreds at once, with questions in batches."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from capret_jax.captioning.config import CollectConfig
from capret_jax.captioning.conversation import Conversation
from capret_jax.captioning.questioner import (
    FailureCounter,
    Questioner,
    QuestionerError,
    Reply,
    Usage,
    log_failure,
    total_usage,
)
from capret_jax.captioning.store import CaptionStore, ItemKey
from capret_jax.captioning.vqa_answerer import Answer, VqaAnswerer, VqaQuery
from capret_jax.data.vqa import Question
from capret_jax.request_batcher import Batcher

# Items whose crops are read and encoded together.
_CHUNK = 64

ReadCrop = Callable[[ItemKey], np.ndarray]


class ConversationRunner:
    """Captions items by a conversation about each."""

    def __init__(
        self,
        answerer: VqaAnswerer,
        questioner: Questioner,
        questions: Sequence[Question],
        store: CaptionStore,
        config: CollectConfig,
    ):
        """
        Args:
            answerer: the VQA model.
            questioner: asks the questions, and summarizes the answers.
            questions: the listed questions, those with lists of answers.
            store: the store of finished items, and the journal.
            config: `dialogue` and `in_flight` are used.
        """
        self._answerer, self._questioner, self._questions = answerer, questioner, questions
        self._store, self._config = store, config
        self._failures = FailureCounter()

    def run(self, keys: Sequence[ItemKey], read_crop: ReadCrop) -> int:
        """Captions items that have no caption yet.

        Args:
            keys: the items.
            read_crop: key -> crop of the item, (S, S, 3) uint8.

        Returns:
            The number of items without a caption, since the language model gave no reply; another
            run resumes them.

        Raises:
            InputError: the language model gave no reply many times in a row.
        """
        return asyncio.run(self._run(keys, read_crop))

    async def _run(self, keys, read_crop) -> int:
        # One thread calls the model while another reads the next crops.
        with ThreadPoolExecutor(1) as model_thread, ThreadPoolExecutor(1) as reader_thread:
            in_flight = self._config.in_flight
            answer = Batcher(self._answerer, model_thread, in_flight, max_waiting=0)
            answer.start()
            slots = asyncio.Semaphore(in_flight)
            unfinished = 0
            tasks: set[asyncio.Task] = set()
            progress = tqdm(keys, "captions", unit="item", leave=False)

            def release(task: asyncio.Task) -> None:
                slots.release()
                progress.update()

            try:
                encoded = self._encode_items(keys, read_crop, model_thread, reader_thread)
                async for key, states in encoded:
                    await slots.acquire()
                    task = asyncio.create_task(self._converse(key, states, answer))
                    task.add_done_callback(release)
                    tasks.add(task)
                    unfinished += _pop_done(tasks)
                while tasks:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    unfinished += _pop_done(tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await answer.stop()
                await self._questioner.close()
                progress.close()
        return unfinished

    async def _encode_items(
        self,
        keys: Sequence[ItemKey],
        read_crop: ReadCrop,
        model_thread: Executor,
        reader_thread: Executor,
    ) -> AsyncIterator[tuple[ItemKey, np.ndarray]]:
        """Yields keys with their vision states, (1+N, D)."""
        loop = asyncio.get_running_loop()
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            images = await loop.run_in_executor(reader_thread, _read_crops, chunk, read_crop)
            states = await loop.run_in_executor(model_thread, self._answerer.encode_images, images)
            for pair in zip(chunk, states, strict=True):
                yield pair

    async def _converse(
        self, key: ItemKey, states: np.ndarray, answer: Batcher[VqaQuery, Answer]
    ) -> bool:
        """Runs or resumes one conversation; False when the questioner gave no reply."""
        conversation, usages, summary = self._resume(key)
        try:
            while not conversation.finished():
                if conversation.pending is None:
                    reply = await self._questioner.ask(conversation)
                    conversation.add_question(reply.text, reply.source)
                    conversation.refusals += len(reply.usage.refused)
                    self._log_reply(key, "question", reply, usages)
                    continue
                question = conversation.vqa_question(conversation.pending)
                found = await answer(VqaQuery(states, question.text, question.answers))
                conversation.add_answer(*found)
                self._store.log(key, {"event": "answer", **found._asdict()})
            if summary is None:
                summary = await self._questioner.summarize(conversation)
                self._log_reply(key, "caption", summary, usages)
        except QuestionerError as error:
            log_failure(self._store, key, error)
            self._failures.record_failure(error)
            return False
        turns = [vars(turn) for turn in conversation.turns]
        costs = total_usage(usages)
        self._store.finish(
            key, summary.text or "", caption_source=summary.source, turns=turns, **costs
        )
        return True

    def _log_reply(self, key: ItemKey, event: str, reply: Reply, usages: list[Usage]) -> None:
        self._failures.reset()
        usages.append(reply.usage)
        cost = {"usage": reply.usage._asdict()} if reply.usage.calls else {}
        self._store.log(key, {"event": event, "text": reply.text, "source": reply.source, **cost})

    def _resume(self, key: ItemKey) -> tuple[Conversation, list[Usage], Reply | None]:
        """Restores the conversation, its costs and its caption from the journal."""
        conversation, usages = Conversation(self._questions, self._config.dialogue), []
        summary: Reply | None = None
        for event in self._store.events(key):
            if event["event"] == "question":
                conversation.add_question(event["text"], event["source"])
            elif event["event"] == "answer":
                conversation.add_answer(event["text"], event["probability"])
            elif event["event"] == "caption":
                summary = Reply(event["text"], source=event["source"])
            if "usage" in event:
                usages.append(Usage(**event["usage"]))
                conversation.refusals += len(usages[-1].refused)
        return conversation, usages, summary


def _read_crops(keys: Sequence[ItemKey], read_crop: ReadCrop) -> np.ndarray:
    return np.stack([*map(read_crop, keys)])


def _pop_done(tasks: set[asyncio.Task]) -> int:
    """Removes the tasks that are done; returns how many of them left an item unfinished."""
    done = {task for task in tasks if task.done()}
    errors = [error for task in done if (error := task.exception())]
    tasks -= done
    if errors:
        raise errors[0]
    return sum(not task.result() for task in done)
