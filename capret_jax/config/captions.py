"""Settings of captions: their source, and their preparation before they are tokenised."""

import dataclasses
from typing import NamedTuple

from capret_jax.errors import InputError

CLEANINGS = ("x2vlm", "earlier", "none")
# Caption fields that DeepFashion2 annotates, and those with the synthetic dataset's details in
# addition; `data.schema` has their values.
FIELDS = ("category", "scale", "occlusion", "zoom_in", "viewpoint")
ALL_FIELDS = (*FIELDS, "colour", "pattern", "print", "neckline")


class Cleaning(NamedTuple):
    """Preparation of texts before they are tokenised; see `data.captions.clean_caption`.

    Attributes:
        kind: `DataConfig.cleaning`.
        max_words: `DataConfig.max_words`.
    """

    kind: str = "x2vlm"
    max_words: int = 30


# Of runs whose configs lack both keys.
EARLIER_CLEANING = Cleaning("earlier", 40)


def check_fields(key: str, fields: tuple[str, ...]) -> None:
    """Checks names of caption fields.

    Args:
        key: key of the configuration, for the message.
        fields: names to check against `ALL_FIELDS`.

    Raises:
        InputError: a field does not exist.
    """
    for field in fields:
        if field not in ALL_FIELDS:
            raise InputError(f"{key} has {field!r}, which is none of {', '.join(ALL_FIELDS)}.")


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """Captions of training items.

    Attributes:
        fields: fields of `ALL_FIELDS` that the template reveals; without any, every caption is
            "an image of an item".
        file: JSON lines {"image_id": 1, "item": 1, "caption": "..."} in place of the template,
            `item` being the n of the annotation's item<n>; an item with several lines has several
            captions, one of which is drawn each time. Lines with a "split" other than "train" are
            ignored.
        dropout: probability that an example's caption is empty.
        short: probability that the template reveals only the category, like the phrases that detect
            garments in photographs.
        prompt: words before each caption that `loss.mlm_causal` trains the model to write; "a
            picture of" in X2-VLM. They are never masked, and the captioner starts from them.
    """

    fields: tuple[str, ...] = FIELDS
    file: str = ""
    dropout: float = 0.0
    short: float = 0.0
    prompt: str = ""

    def __post_init__(self):
        check_fields("data.captions.fields", self.fields)
        for name in ("dropout", "short"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"data.captions.{name}={getattr(self, name)} is not in [0, 1).")
        if self.short and (self.file or "category" not in self.fields):
            raise InputError(
                f"data.captions.short={self.short} needs a template that reveals the category."
            )

    def describe(self) -> str:
        """Describes the source of the captions, for the metrics."""
        if self.file:
            return f"file {self.file}"
        return f"template of {', '.join(self.fields)}" if self.fields else "nothing of the item"
