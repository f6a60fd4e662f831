"""The interface of a language model: one prompt in, one completion out.

Phi-3's chat template has no place for a system message, and other models want roles to alternate.
So each prompt is one message of the user that contains all information.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

# Maximal number of tokens of a completion: enough for a question or a sentence.
MAX_COMPLETION_TOKENS = 64


class Completion(NamedTuple):
    """The text that a language model wrote, and the tokens of its prompt and of the text."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class NoReply(Exception):
    """Error: a language model gave no reply after all attempts; the message is the reason."""


LanguageModel = Callable[[str], Awaitable[Completion]]
# Chooses the likeliest of several replies to a prompt. The API of chat servers has no likelihoods.
ReplyChooser = Callable[[str, Sequence[str]], Awaitable[Completion]]
