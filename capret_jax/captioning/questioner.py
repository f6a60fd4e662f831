"""Those who ask and sum up: a script, or a language model with prompts."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from capret_jax.captioning.conversation import (
    NOT_SURE,
    Dialogue,
    InvalidReply,
    Turn,
    left_out,
    parse_caption,
    parse_question,
    plain_caption,
    sources_of,
    unsupported,
    worth_saying,
)
from capret_jax.captioning.language_models import LanguageModel, NoReply
from capret_jax.captioning.store import Key, Store
from capret_jax.errors import InputError

# Times that a language model is asked for the same thing, told each time what was wrong.
_ATTEMPTS = 3
# Items in a row without a reply, after which it is given up.
_GIVEN_UP = 16

_ASK = """\
Someone looks at a photo of one garment from a shop and answers your questions. You cannot see it. \
Find out what tells this garment from similar ones.

Known so far:
{known}

Ask ONE short question with an answer of one to three words, about one of these: {topics}. \
Write the question and nothing else; do not answer it. If there is nothing left to ask, write DONE.\
"""
_SUM_UP = """\
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
_AGAIN = "\n\nYour last attempt was refused: {why}. It was: {reply}"


class Usage(NamedTuple):
    """What a text cost: calls of a language model, their tokens, and replies that were refused."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: tuple[str, ...] = ()


def total(spent: Sequence[Usage]) -> dict[str, int]:
    """`store.COUNTED` of several texts together."""
    return {
        "calls": sum(usage.calls for usage in spent),
        "prompt_tokens": sum(usage.prompt_tokens for usage in spent),
        "completion_tokens": sum(usage.completion_tokens for usage in spent),
        "refused": sum(len(usage.refused) for usage in spent),
    }


class NoAnswer(NoReply):
    """A language model fell silent; `usage` is what it had said before that was refused."""

    def __init__(self, why: str, usage: Usage):
        super().__init__(why)
        self.usage = usage


def log_refused(store: Store, key: Key, usage: Usage) -> None:
    """Keeps what was said before a language model fell silent: it was paid for."""
    if usage.calls:
        store.log(key, {"event": "refused", "usage": usage._asdict()})


class FailureCounter:
    """Replies that did not come, one after the other."""

    def __init__(self) -> None:
        self._row = 0

    def is_broken(self) -> None:
        """A reply came."""
        self._row = 0

    def goes_on(self, error: Exception) -> None:
        """None came.

        Raises:
            InputError: there is no more hope.
        """
        self._row += 1
        if self._row >= _GIVEN_UP:
            raise InputError(
                f"the language model gave no reply {_GIVEN_UP} times in a row ({error}): mend it "
                "and run the same command again, which goes on where this stopped."
            ) from error


class Reply(NamedTuple):
    """A text, None for no more questions; and what it cost."""

    text: str | None
    usage: Usage = Usage()


class Questioner(Protocol):
    """Asks about garments and sums up what was answered.

    Attributes:
        name: for the record.
    """

    name: str

    async def ask(self, dialogue: Dialogue) -> Reply: ...
    async def sum_up(self, dialogue: Dialogue) -> Reply: ...
    async def close(self) -> None: ...


class Script:
    """Asks what is on the list, one after the other, without a language model."""

    name = "script"

    async def ask(self, dialogue: Dialogue) -> Reply:
        """The next question of the list that suits the garment."""
        left = dialogue.open_questions()
        return Reply(f"{left[0].text}?" if left else None)

    async def sum_up(self, dialogue: Dialogue) -> Reply:
        """The facts in a row."""
        return Reply(plain_caption(dialogue.facts()))

    async def close(self) -> None:
        """There is nothing to end."""


class Prompted:
    """A language model that asks; where it keeps failing to, the script goes on in its place."""

    def __init__(self, model: LanguageModel, name: str, close: Callable[[], Awaitable[None]]):
        """
        Args:
            model: replies to prompts.
            name: of it, for the record.
            close: ends it.
        """
        self._model, self.name, self._close = model, name, close
        self._script = Script()

    async def ask(self, dialogue: Dialogue) -> Reply:
        """The next question.

        Raises:
            NoAnswer: the model gave no reply.
        """
        left = dialogue.open_questions()
        topics = ", ".join(question.topic for question in left) or "anything else worth knowing"
        prompt = _ASK.format(known=_known(dialogue), topics=topics)
        asked = {turn.question.lower() for turn in dialogue.turns}

        def parse(reply: str) -> str | None:
            question = parse_question(reply)
            if question is None and not dialogue.turns:
                raise InvalidReply("nothing is known yet, so it is too early to be done")
            if question and question.lower() in asked:
                raise InvalidReply("that was asked before")
            if question and not dialogue.suits(topic := dialogue.topic_of(question)):
                raise InvalidReply(f"this garment has no {topic}")
            if question and dialogue.says_nothing(question):
                raise InvalidReply("yes and no say little of a garment: ask what, which or how")
            return question

        return await self._attempt(prompt, parse, lambda: self._script.ask(dialogue))

    async def sum_up(self, dialogue: Dialogue) -> Reply:
        """A caption of the facts; checked to say nothing else.

        Raises:
            NoAnswer: the model gave no reply.
        """
        facts = worth_saying(dialogue.facts())
        if not facts:
            return await self._script.sum_up(dialogue)
        known = "\n".join(f"- {turn.topic or turn.question}: {turn.answer}" for turn in facts)
        return await self._attempt(
            _SUM_UP.format(known=known),
            lambda reply: _complete(_supported(reply, sources_of(facts)), facts),
            lambda: self._script.sum_up(dialogue),
        )

    async def condense(self, captions: Sequence[str]) -> Reply:
        """One caption of several, in their words (IC3, arXiv 2302.01328).

        Raises:
            NoAnswer: the model gave no reply.
        """

        async def first() -> Reply:
            return Reply(captions[0])

        return await self._attempt(
            _CONDENSE.format(known="\n".join(f"- {caption}" for caption in captions)),
            lambda reply: _supported(reply, captions),
            first,
        )

    async def close(self) -> None:
        """Ends the language model."""
        await self._close()

    async def _attempt(
        self,
        prompt: str,
        parse: Callable[[str], str | None],
        otherwise: Callable[[], Awaitable[Reply]],
    ) -> Reply:
        calls = read = written = 0
        again = ""
        refused: list[str] = []
        for _ in range(_ATTEMPTS):
            try:
                reply = await self._model(prompt + again)
            except NoReply as error:
                usage = Usage(calls, read, written, tuple(refused))
                raise NoAnswer(str(error), usage) from error
            calls, read = calls + 1, read + reply.prompt_tokens
            written += reply.completion_tokens
            try:
                return Reply(parse(reply.text), Usage(calls, read, written, tuple(refused)))
            except InvalidReply as error:
                refused.append(reply.text)
                again = _AGAIN.format(why=error, reply=" ".join(reply.text.split())[:200])
        usage = Usage(calls, read, written, tuple(refused))
        return (await otherwise())._replace(usage=usage)


def _known(dialogue: Dialogue) -> str:
    lines = [
        f"- {turn.question} {turn.answer if turn.sure else NOT_SURE}" for turn in dialogue.turns
    ]
    return "\n".join(lines) or "- nothing yet"


def _complete(caption: str, facts: Sequence[Turn]) -> str:
    if missing := left_out(caption, facts):
        raise InvalidReply(f"it leaves out: {', '.join(missing)}")
    return caption


def _supported(reply: str, sources: Sequence[str]) -> str:
    caption = parse_caption(reply)
    if extra := unsupported(caption, sources):
        raise InvalidReply(f"it says what is not known: {', '.join(extra[:5])}")
    return caption
