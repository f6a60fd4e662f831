"""The configuration of a collection of captions."""

import dataclasses

from capret_jax.captioning.chat_client import ServerConfig
from capret_jax.captioning.conversation import ConversationConfig
from capret_jax.data.vqa import known_topics
from capret_jax.distributed.part import Part
from capret_jax.errors import InputError

METHODS = ("conversation", "captioner", "ic3", "annotations")
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Method and limits of a collection of captions.

    Attributes:
        method: "conversation"; "captioner", X2-VLM's own captions; "ic3", several of those
            condensed by a language model; or "annotations", the caption of a conversation in which
            all answers are true: an upper bound, not for shoppers' photos.
        questioner: "script", address of an OpenAI-compatible server, or "transformers:PATH".
        language_model: name of one of the server's models; empty for the first.
        splits: splits whose items are captioned.
        limit: items over all splits, at most; 0 for all.
        part: the share of these items that this process captions: every `count`-th, from `index`
            on. The files of all parts together equal the file of one process.
        in_flight: items at once.
        batch_size: images, and questions, per call of the model.
        dialogue: when a conversation ends, and the probability from which an answer is a fact.
        server: limits of the requests to the server.
    """

    method: str = "conversation"
    questioner: str = "script"
    language_model: str = ""
    splits: tuple[str, ...] = SPLITS
    limit: int = 0
    part: Part = Part()
    in_flight: int = 512
    batch_size: int = 64
    dialogue: ConversationConfig = ConversationConfig()
    server: ServerConfig = ServerConfig()

    def __post_init__(self):
        if self.method not in METHODS:
            raise InputError(f"--method={self.method} is none of {', '.join(METHODS)}.")
        for split in self.splits:
            if split not in SPLITS:
                raise InputError(f"--splits has {split!r}, which is none of {', '.join(SPLITS)}.")
        if self.method == "ic3" and self.questioner == "script":
            raise InputError(
                "--method=ic3 condenses captions with a language model: set --questioner."
            )
        if min(self.in_flight, self.batch_size) < 1 or self.limit < 0:
            raise InputError("--in_flight and --batch_size must be positive, --limit not negative.")
        index, count = self.part.index, self.part.count
        if not 0 <= index < count:
            raise InputError(f"--part={index}/{count} is not i/n with i from 0 to n - 1.")
        if self.method in ("captioner", "annotations") and self.questioner != "script":
            raise InputError(
                f"--method={self.method} needs no questioner: remove "
                f"--questioner={self.questioner}."
            )

    def describe(self, dataset: str) -> str:
        """Lists the sources of information that can influence a caption, for reports.

        Args:
            dataset: `DataConfig.name`.
        """
        picture = "the picture, and no annotation"
        if self.method == "annotations":
            return f"the annotations: {', '.join(known_topics(dataset))}"
        if self.method == "captioner":
            return f"X2-VLM's captioner: {picture}"
        if self.method == "ic3":
            return f"X2-VLM's captions condensed by {self.questioner}: {picture}"
        return (
            f"answers of X2-VLM to {self.questioner}: the picture; annotations, of training items, "
            "only calibrate its probabilities"
        )
