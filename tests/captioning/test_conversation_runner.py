"""Many conversations at once: batched, stopped and gone on with, and never asked twice."""

import dataclasses

import pytest

from capret_jax.captioning.captioner import DRAWN, Captioner, describe
from capret_jax.captioning.conversation import DialogueConfig, sources_of, unsupported, worth_saying
from capret_jax.captioning.conversation import Turn as DialogueTurn
from capret_jax.captioning.conversation_runner import Collector
from capret_jax.captioning.language_models import Server, ServerConfig, open_language_model
from capret_jax.captioning.questioner import Prompted, Script
from capret_jax.captioning.store import COUNTED, Key, Store
from capret_jax.data import vqa as questions
from capret_jax.errors import InputError
from tests.captioning.conftest import ANSWERING, sensible

KEYS = [Key("train", number, 1) for number in range(19)]
# Random answers: anything counts.
CONFIG = DialogueConfig(max_turns=4, sure=0.0)
SERVER = ServerConfig(workers=8, timeout=2.0, retries=1)


@pytest.fixture
def look(images):
    return lambda key: images[key.image_id]


@pytest.fixture
def collect(answerer, look, tmp_path):
    """Runs one collection to its end; how many are unfinished, and the lines it left."""

    def run(questioner, keys=KEYS, name="out.jsonl", in_flight=16, look=look):
        store = Store(tmp_path / name, {"questioner": questioner.name})
        try:
            collector = Collector(
                answerer,
                questioner,
                questions.SYNTHETIC_QUESTIONS,
                CONFIG,
                store,
                in_flight=in_flight,
            )
            left = [key for key in keys if key not in store.finished]
            return collector.collect(left, look), dict(store.lines())
        finally:
            store.close()

    return run


def prompted(server) -> Prompted:
    model = Server(server.url, config=SERVER)
    return Prompted(model, model.name, model.close)


def test_many_at_once_say_what_each_alone_would(collect):
    unfinished, together = collect(Script())
    assert unfinished == 0 and len(KEYS) == len(together)
    _, alone = collect(Script(), name="alone.jsonl", in_flight=1)
    for key in KEYS:
        assert together[key]["caption"] == alone[key]["caption"]
        for turn, other in zip(together[key]["turns"], alone[key]["turns"], strict=True):
            assert turn.pop("probability") == pytest.approx(other.pop("probability"), rel=1e-2)
            assert turn == other


def test_a_language_model_talks_and_its_tokens_are_counted(collect, serve):
    server = serve()
    _, finished = collect(prompted(server))
    for line in finished.values():
        turns = [DialogueTurn(**turn) for turn in line["turns"]]
        # Four questions and a caption; what it answers itself is not taken.
        assert len(turns) == 4
        assert [line[name] for name in COUNTED] == [5, 500, 50, 0]
        facts = worth_saying([turn for turn in turns if turn.sure])
        assert unsupported(line["caption"], sources_of(facts)) == []
        assert all(turn.answer in line["caption"] for turn in facts)
    assert collect(prompted(server)) == (0, finished)
    assert server.requests == 5 * 19


@pytest.mark.torch
def test_a_phi_3_on_this_machine_talks(collect, tiny_phi3):
    """Random weights: what it says is refused or free, and every item gets its caption."""
    model = open_language_model(f"transformers:{tiny_phi3[1]}")
    unfinished, finished = collect(Prompted(model, model.name, model.close), keys=KEYS[:4])
    assert unfinished == 0 and len(finished) == 4
    for line in finished.values():
        assert line["calls"] >= 5 and line["completion_tokens"] > 0 and line["caption"]
        facts = worth_saying([DialogueTurn(**turn) for turn in line["turns"] if turn["sure"]])
        assert unsupported(line["caption"], sources_of(facts)) == []


def test_a_stopped_collection_goes_on_without_asking_twice(collect, serve, look):
    server = serve(lambda prompt, number: sensible(prompt, number) if number <= 40 else 500)
    unfinished, first = collect(prompted(server), keys=KEYS[:12])
    assert len(first) + unfinished == 12 and unfinished >= 4
    answered = server.requests
    server.reply = sensible
    unfinished, finished = collect(prompted(server))
    assert unfinished == 0 and len(finished) == 19 and finished.items() > first.items()
    # 40 replies were kept: no more than what is left was asked for.
    assert server.requests - answered == 5 * 19 - 40
    assert all(line["calls"] == 5 and len(line["turns"]) == 4 for line in finished.values())


def test_a_server_of_moods_loses_nothing(collect, serve):
    def moody(prompt, number):
        if number % 7 == 0:
            return 500
        return "blah blah" if number % 5 == 0 else sensible(prompt, number)

    model = Server(serve(moody).url, config=dataclasses.replace(SERVER, retries=4))
    unfinished, finished = collect(Prompted(model, model.name, model.close))
    assert unfinished == 0 and len(finished) == 19
    assert sum(line["refused"] for line in finished.values()) > 0


def test_a_server_that_fell_silent_is_given_up(collect, serve):
    with pytest.raises(InputError, match="no reply 16 times in a row .* goes on where this"):
        collect(prompted(serve(lambda prompt, number: 500)))


def test_a_broken_picture_stops_with_its_message(collect):
    def broken(key):
        raise InputError("image 7 does not decode")

    with pytest.raises(InputError, match="image 7"):
        collect(Script(), look=broken)


@pytest.fixture(scope="module")
def describer(encode, answering_params):
    return Captioner(ANSWERING, answering_params, encode)


def test_drawn_captions_differ_and_each_seed_decides(describer, images):
    drawn = describer.drawn(images[:3], [1, 2, 3])
    assert [len(set(captions)) for captions in drawn] == [DRAWN] * 3
    # Whatever stands beside it.
    assert describer.drawn(images[1:2], [2]) == drawn[1:2]
    assert describer.drawn(images[1:2], [9]) != drawn[1:2]


def test_captions_are_described_and_condensed(describer, look, serve, tmp_path, images):
    store = Store(tmp_path / "captioner.jsonl", {})
    assert describe(KEYS[:5], look, describer, store) == 0
    best = describer.best(images[:5])
    assert [line["caption"] for _, line in store.lines()] == best
    store.close()
    server = serve(lambda prompt, number: prompt.split("\n- ")[2].split("\n")[0])
    store = Store(tmp_path / "ic3.jsonl", {})
    assert describe(KEYS[:5], look, describer, store, prompted(server), in_flight=2) == 0
    lines = [line for _, line in store.lines()]
    assert all(line["caption"] in line["drawn"] for line in lines)
    assert all(len(line["drawn"]) == DRAWN for line in lines)
    assert server.requests == sum(line["calls"] for line in lines)
    store.close()


def test_a_condensed_caption_that_was_written_is_not_asked_for_again(
    describer, look, serve, tmp_path
):
    """Killed between the reply and the finished line."""
    server, out = serve(lambda prompt, number: prompt.split("\n- ")[2].split("\n")[0]), "ic3.jsonl"
    for _ in range(2):
        store = Store(tmp_path / out, {})
        left = [key for key in KEYS[:3] if key not in store.finished]
        assert describe(left, look, describer, store, prompted(server)) == 0
        lines = dict(store.lines())
        store.close()
        whole = (tmp_path / out).read_text()
        (tmp_path / out).write_text(whole.splitlines(keepends=True)[0])
    assert server.requests == sum(line["calls"] for line in lines.values()) and len(lines) == 3


def test_a_condenser_that_fell_silent_is_given_up(describer, look, serve, tmp_path):
    store = Store(tmp_path / "ic3.jsonl", {})
    server = serve(lambda prompt, number: 400)
    with pytest.raises(InputError, match="no reply 16 times in a row"):
        describe(KEYS, look, describer, store, prompted(server))
    store.close()


def test_a_caption_that_was_written_is_not_asked_for_again(collect, serve, tmp_path):
    """Killed between the last reply and the finished line."""
    server = serve()
    _, finished = collect(prompted(server), keys=KEYS[:2])
    out = tmp_path / "out.jsonl"
    out.write_text(out.read_text().splitlines(keepends=True)[0])
    asked = server.requests
    assert collect(prompted(server), keys=KEYS[:2]) == (0, finished)
    assert server.requests == asked
