"""X2-VLM's own captions, and several condensed to one by a language model."""

import pytest

from capret_jax.captioning.batched_model import BatchedModel
from capret_jax.captioning.captioner import SAMPLED_CAPTIONS, Captioner
from capret_jax.captioning.captioner_runner import CaptionerRunner
from capret_jax.captioning.reply_parsing import parse_caption
from capret_jax.captioning.store import CaptionStore
from capret_jax.errors import InputError
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
