"""X2-VLM's own captions, and several condensed to one by a language model."""

import jax.numpy as jnp
import numpy as np
import pytest

from capret_jax.captioning.batched_model import BatchedModel
from capret_jax.captioning.captioner import SAMPLED_CAPTIONS, Captioner
from capret_jax.captioning.captioner_runner import CaptionerRunner
from capret_jax.captioning.reply_parsing import parse_caption
from capret_jax.captioning.store import CaptionStore
from capret_jax.errors import InputError
from capret_jax.models.beam_search import BeamConfig
from capret_jax.models.caption_generation import SpecialTokens, write_captions
from capret_jax.models.x2vlm import normalize_pixels
from tests.captioning.conftest import ANSWERING, KEYS, prompted


@pytest.fixture(scope="module")
def captioner(encode, answering_params):
    return Captioner(BatchedModel(ANSWERING, answering_params, encode))


def test_sampled_captions_depend_on_their_seeds_alone(captioner, images):
    sampled = captioner.sample(images[:3], [1, 2, 3])
    assert [len(set(captions)) for captions in sampled] == [SAMPLED_CAPTIONS] * 3
    # Other images in the batch have no influence.
    assert captioner.sample(images[1:2], [2]) == sampled[1:2]
    assert captioner.sample(images[1:2], [9]) != sampled[1:2]


def test_the_prompt_is_where_the_model_starts_and_no_part_of_its_captions(
    captioner, encode, answering_params, images
):
    batched = BatchedModel(ANSWERING, answering_params, encode)
    prompt_ids = [*encode("what colour").ids[:3]]  # [CLS] and the prompt
    config = BeamConfig(beams=3, max_tokens=16 - 1 - len(prompt_ids))
    special = SpecialTokens(encode.tokenizer.mask_token_id, encode.tokenizer.sep_token_id)

    def write(model, pixels):
        states = model.encode_image(normalize_pixels(pixels))
        return write_captions(model, states, jnp.array(prompt_ids), special, config)[0]

    ids = np.asarray(batched.compile(write)(images[:4]))
    expected = encode.tokenizer.batch_decode(ids, skip_special_tokens=True)
    written = Captioner(batched, "what colour").caption(images[:4])
    assert written == expected and all(written)
    assert written != captioner.caption(images[:4])
    with pytest.raises(InputError, match="lacks words of the prompt 'фото'"):
        Captioner(batched, "фото")


def test_captions_of_the_beam_search_and_condensed_captions(
    captioner, read_crop, serve, tmp_path, images
):
    store = CaptionStore(tmp_path / "captioner.jsonl", {})
    assert CaptionerRunner(captioner, store).run(KEYS[:5], read_crop) == 0
    best = captioner.caption(images[:5])
    assert [line["caption"] for _, line in store.lines()] == best
    store.close()
    server = serve(lambda prompt, number: prompt.split("\n- ")[2].split("\n")[0])
    store = CaptionStore(tmp_path / "ic3.jsonl", {})
    assert (
        CaptionerRunner(captioner, store, prompted(server), in_flight=2).run(KEYS[:5], read_crop)
        == 0
    )
    lines = [line for _, line in store.lines()]
    for line in lines:
        # A model of random weights draws marks of Markdown, which a reply loses.
        assert line["caption"] in (*line["drawn"], parse_caption(line["drawn"][1]))
    assert all(len(line["drawn"]) == SAMPLED_CAPTIONS for line in lines)
    assert server.requests == sum(line["calls"] for line in lines)
    store.close()


def test_condensed_caption_in_the_journal_is_not_requested_again(
    captioner, read_crop, serve, tmp_path
):
    """A kill between the reply and the finished line."""
    server, out = serve(lambda prompt, number: prompt.split("\n- ")[2].split("\n")[0]), "ic3.jsonl"
    for _ in range(2):
        store = CaptionStore(tmp_path / out, {})
        pending = [key for key in KEYS[:3] if key not in store.finished]
        assert CaptionerRunner(captioner, store, prompted(server)).run(pending, read_crop) == 0
        lines = dict(store.lines())
        store.close()
        whole = (tmp_path / out).read_text()
        (tmp_path / out).write_text(whole.splitlines(keepends=True)[0])
    assert server.requests == sum(line["calls"] for line in lines.values()) and len(lines) == 3


def test_failures_in_a_row_stop_the_run(captioner, read_crop, serve, tmp_path):
    store = CaptionStore(tmp_path / "ic3.jsonl", {})
    server = serve(lambda prompt, number: 400)
    with pytest.raises(InputError, match="no reply 16 times in a row"):
        CaptionerRunner(captioner, store, prompted(server)).run(KEYS, read_crop)
    store.close()
