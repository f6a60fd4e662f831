"""The encoder of the phrases of all categories."""

import pytest

from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.detection.phrases import PHRASES


@pytest.fixture(scope="session")
def encode(tmp_path_factory) -> CaptionEncoder:
    """Encodes texts with a vocabulary of the phrases."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    build_vocabulary(PHRASES, path, 200)
    return CaptionEncoder(load_tokenizer(str(path)), 12)
