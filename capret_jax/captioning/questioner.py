"""Questioners: interface, costs and failures, and the scripted questioner without a model."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from capret_jax.captioning.conversation import Conversation
from capret_jax.captioning.fact_captions import caption_from_facts
from capret_jax.captioning.language_model import NoReply
from capret_jax.captioning.store import CaptionStore, ItemKey
from capret_jax.errors import InputError

# Number of consecutive items without a reply after which the run stops.
_MAX_FAILURES = 16


class Usage(NamedTuple):
    """The cost of a text: calls of a language model, their tokens, and its refused replies."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: tuple[str, ...] = ()


def total_usage(usages: Sequence[Usage]) -> dict[str, int]:
    """Sums the costs of several texts; the keys are `store.COST_KEYS`."""
    return {
        "calls": sum(usage.calls for usage in usages),
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "refused": sum(len(usage.refused) for usage in usages),
    }


class QuestionerError(NoReply):
    """Error: a language model gave no reply; `usage` is the cost of earlier refused replies."""

    def __init__(self, reason: str, usage: Usage):
        super().__init__(reason)
        self.usage = usage


def log_failure(store: CaptionStore, key: ItemKey, error: QuestionerError) -> None:
    """Adds the cost of refused replies before a failure to the journal."""
    if error.usage.calls:
        store.log(key, {"event": "refused", "usage": error.usage._asdict()})


class FailureCounter:
    """Counts consecutive failures of a language model."""

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        """Sets the count to 0, after a reply."""
        self._failures = 0

    def record_failure(self, error: Exception) -> None:
        """Counts one more failure.

        Raises:
            InputError: it is the 16th in a row.
        """
        self._failures += 1
        if self._failures >= _MAX_FAILURES:
            raise InputError(
                f"the language model gave no reply {_MAX_FAILURES} times in a row ({error}): "
                "repair it and run the same command again, which goes on where this stopped."
            ) from error


class Reply(NamedTuple):
    """A questioner's text and its cost; the text None means that no question is left.

    Attributes:
        text: the question or caption.
        usage: its cost.
        source: "written" by a language model, "chosen" by it, or "scripted".
    """

    text: str | None
    usage: Usage = Usage()
    source: str = "scripted"


class Questioner(Protocol):
    """Asks questions about a garment and summarizes the answers in a caption.

    Attributes:
        name: the name that the journal records.
    """

    name: str

    async def ask(self, conversation: Conversation) -> Reply: ...
    async def summarize(self, conversation: Conversation) -> Reply: ...
    async def close(self) -> None: ...


class ScriptedQuestioner:
    """Asks the listed questions in their order, without a language model."""

    name = "script"

    async def ask(self, conversation: Conversation) -> Reply:
        """Returns the next listed question that applies to the garment."""
        remaining = conversation.remaining_questions()
        return Reply(f"{remaining[0].text}?" if remaining else None)

    async def summarize(self, conversation: Conversation) -> Reply:
        """Joins the facts to a caption."""
        return Reply(caption_from_facts(conversation.facts()))

    async def close(self) -> None:
        """Does nothing: no resource is held."""
