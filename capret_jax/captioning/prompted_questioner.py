"""A questioner that prompts a language model, and checks its replies."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from capret_jax.captioning.conversation import Conversation, Turn
from capret_jax.captioning.fact_captions import (
    caption_wordings,
    distinct_facts,
    fact_sources,
    missing_answers,
    positive_facts,
    repeated_words,
    unsupported_words,
)
from capret_jax.captioning.language_model import Completion, LanguageModel, NoReply, ReplyChooser
from capret_jax.captioning.questioner import QuestionerError, Reply, ScriptedQuestioner, Usage
from capret_jax.captioning.reply_parsing import InvalidReply, parse_caption, parse_question
from capret_jax.captioning.reply_text import clean_line, clean_reply

_NOT_SURE = "not sure"
# Attempts per text; each prompt after the first states why the last reply was refused.
_ATTEMPTS = 3
# Refused replies about an item after which a model that can choose only chooses.
_MAX_REFUSALS = 2
# Characters of a refused reply that its retry repeats.
_RETRY_CHARS = 200

_ASK = """\
Someone looks at a photo of one garment from a shop and answers your questions. You cannot see it. \
Find out what tells this garment from similar ones.

Known so far:
{known}

Ask ONE short question with an answer of one to three words, about one of these: {topics}. \
Write the question and nothing else; do not answer it. If there is nothing left to ask, write DONE.\
"""
_SUMMARIZE = """\
Facts about a garment:
{known}

Write one short sentence in English that describes the garment with these facts. Leave none out, \
add none. Write the sentence and nothing else.\
"""
_CONDENSE = """\
Several people described the same garment, and none of them is always right:
{known}

Write one short sentence in English that keeps what most of them agree on. Use their words and no \
others. Write the sentence and nothing else.\
"""
_RETRY = "\n\nYour last attempt was refused: {reason}. It was: {reply}"


class PromptedQuestioner:
    """A language model as questioner; after invalid replies it chooses, or the script answers.

    Attributes:
        name: the name that the journal records.
    """

    def __init__(
        self,
        model: LanguageModel,
        name: str,
        close: Callable[[], Awaitable[None]],
        choose: ReplyChooser | None = None,
    ):
        """
        Args:
            model: the language model.
            name: its name, for the journal.
            close: releases the language model.
            choose: the likelihoods of a model that is too small to write; None if it has none.
        """
        self._model, self.name, self._close, self._choose = model, name, close, choose
        self._script = ScriptedQuestioner()

    async def ask(self, conversation: Conversation) -> Reply:
        """Asks the next question.

        Raises:
            QuestionerError: the model gave no reply.
        """
        remaining = conversation.remaining_questions()
        topics = ", ".join(question.topic for question in remaining)
        prompt = _ASK.format(
            known=_list_answers(conversation), topics=topics or "anything else worth knowing"
        )
        task = _Task(
            prompt,
            lambda reply: _parse_next_question(reply, conversation),
            lambda: self._script.ask(conversation),
            conversation.question_wordings(),
        )
        return await self._attempt(task, conversation.refusals)

    async def summarize(self, conversation: Conversation) -> Reply:
        """Writes a caption with all facts and nothing else.

        Raises:
            QuestionerError: the model gave no reply.
        """
        facts = positive_facts(conversation.facts())
        if not facts:
            return await self._script.summarize(conversation)
        known = "\n".join(
            f"- {turn.topic or turn.question}: {turn.answer}" for turn in distinct_facts(facts)
        )
        task = _Task(
            _SUMMARIZE.format(known=known),
            lambda reply: _require_all(_parse_supported(reply, fact_sources(facts)), facts),
            lambda: self._script.summarize(conversation),
            caption_wordings(facts),
        )
        return await self._attempt(task, conversation.refusals)

    async def condense(self, captions: Sequence[str]) -> Reply:
        """Condenses captions to one in their words (IC3, arXiv 2302.01328); else takes the first.

        Raises:
            QuestionerError: the model gave no reply.
        """

        async def first() -> Reply:
            return Reply(captions[0])

        prompt = _CONDENSE.format(known="\n".join(f"- {caption}" for caption in captions))
        task = _Task(prompt, lambda reply: _parse_supported(reply, captions), first, captions)
        return await self._attempt(task)

    async def close(self) -> None:
        """Releases the language model."""
        await self._close()

    async def _attempt(self, task: "_Task", refusals: int = 0) -> Reply:
        """Returns the first valid reply, or a chosen one, or the fallback; with the total cost.

        Args:
            task: the text to write.
            refusals: refused replies about the same item so far.
        """
        attempts = _ATTEMPTS
        if self._choose is not None:
            attempts = min(attempts, _MAX_REFUSALS - refusals)
        usage, retry = Usage(), ""
        for _ in range(attempts):
            completion, usage = await self._call(self._model(task.prompt + retry), usage)
            try:
                return Reply(task.parse(completion.text), usage, "written")
            except InvalidReply as error:
                usage = usage._replace(refused=(*usage.refused, clean_reply(completion.text)))
                shortened = clean_line(completion.text, _RETRY_CHARS)
                retry = _RETRY.format(reason=error, reply=shortened)
        if self._choose is not None and task.wordings:
            chosen, usage = await self._call(self._choose(task.prompt, task.wordings), usage)
            return Reply(chosen.text, usage, "chosen")
        return (await task.fallback())._replace(usage=usage)

    async def _call(self, call: Awaitable[Completion], usage: Usage) -> tuple[Completion, Usage]:
        """Awaits a call of the model; returns the usage with its cost added."""
        try:
            completion = await call
        except NoReply as error:
            raise QuestionerError(str(error), usage) from error
        return completion, Usage(
            usage.calls + 1,
            usage.prompt_tokens + completion.prompt_tokens,
            usage.completion_tokens + completion.completion_tokens,
            usage.refused,
        )


class _Task(NamedTuple):
    """A text that a language model is to write.

    Attributes:
        prompt: the prompt.
        parse: extracts the text from a reply; raises `InvalidReply`.
        fallback: writes the text without the model.
        wordings: valid texts, from which a model that has likelihoods chooses one.
    """

    prompt: str
    parse: Callable[[str], str | None]
    fallback: Callable[[], Awaitable[Reply]]
    wordings: Sequence[str]


def _list_answers(conversation: Conversation) -> str:
    lines = [
        f"- {turn.question} {turn.answer if turn.sure else _NOT_SURE}"
        for turn in conversation.turns
    ]
    return "\n".join(lines) or "- nothing yet"


def _parse_next_question(reply: str, conversation: Conversation) -> str | None:
    question = parse_question(reply)
    if question is None:
        if not conversation.turns:
            raise InvalidReply("nothing is known yet, so it is too early to be done")
        return None
    if question.lower() in {turn.question.lower() for turn in conversation.turns}:
        raise InvalidReply("that was asked before")
    if not conversation.applies(topic := conversation.topic_of(question)):
        raise InvalidReply(f"this garment has no {topic}")
    if conversation.is_empty(question):
        raise InvalidReply("it does not say what it asks about: name one thing")
    if conversation.is_uninformative(question):
        raise InvalidReply("yes and no say little of a garment: ask what, which or how")
    return question


def _parse_supported(reply: str, sources: Sequence[str]) -> str:
    caption = parse_caption(reply)
    if extra := unsupported_words(caption, sources):
        raise InvalidReply(f"it says what is not known: {', '.join(extra[:5])}")
    return caption


def _require_all(caption: str, facts: Sequence[Turn]) -> str:
    if missing := missing_answers(caption, facts):
        raise InvalidReply(f"it leaves out: {', '.join(missing)}")
    if repeated := repeated_words(caption, facts):
        raise InvalidReply(f"it repeats: {', '.join(repeated[:5])}")
    return caption
