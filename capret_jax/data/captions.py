"""Captions from an item's attributes, and how captions are cleaned before tokenisation."""

import re

from capret_jax.data.schema import CATEGORIES, LEVELS

TEMPLATE = (
    "an image of a {category} with viewpoint {viewpoint}, occlusion level {occlusion}, "
    "scale {scale}, and zoom in {zoom_in}"
)
# Words kept of a caption, as X2-VLM's fine-tuning does.
_MAX_WORDS = 40


def template_caption(item: dict[str, int]) -> str:
    """The template's caption of one item.

    Args:
        item: `category_id` (1..13) and the levels `viewpoint`, `occlusion`, `scale`, `zoom_in`
            (1..3); other keys do not matter.
    """
    words = {name: values[item[name] - 1] for name, values in LEVELS.items()}
    return TEMPLATE.format(category=CATEGORIES[item["category_id"] - 1], **words)


def clean_caption(text: str) -> str:
    """Lower case without punctuation, hyphens and slashes as spaces, cut at 40 words."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    return " ".join(re.sub(r"[-/]", " ", text).split()[:_MAX_WORDS])
