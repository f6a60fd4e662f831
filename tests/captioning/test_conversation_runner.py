"""Many conversations at once: batched, interrupted and resumed, with failing servers."""

import dataclasses

import pytest

from capret_jax.captioning.chat_client import ChatClient
from capret_jax.captioning.config import CollectConfig
from capret_jax.captioning.conversation import ConversationConfig, Turn
from capret_jax.captioning.conversation_runner import ConversationRunner
from capret_jax.captioning.fact_captions import fact_sources, positive_facts, unsupported_words
from capret_jax.captioning.prompted_questioner import PromptedQuestioner
from capret_jax.captioning.questioner import ScriptedQuestioner
from capret_jax.captioning.questioner_factory import open_language_model
from capret_jax.captioning.store import COST_KEYS, CaptionStore
from capret_jax.data.vqa import SYNTHETIC_QUESTIONS
from capret_jax.errors import InputError
from tests.captioning.conftest import KEYS, SERVER, prompted, valid_reply

# The weights are random: every answer is a fact.
CONVERSATION = ConversationConfig(max_turns=4, sure=0.0)


@pytest.fixture
def collect(answerer, read_crop, tmp_path):
    """Runs one collection; returns the number of unfinished items, and the finished lines."""

    def run(questioner, keys=KEYS, name="out.jsonl", in_flight=16, read_crop=read_crop):
        store = CaptionStore(tmp_path / name, {"questioner": questioner.name})
        config = CollectConfig(dialogue=CONVERSATION, in_flight=in_flight)
        try:
            runner = ConversationRunner(answerer, questioner, SYNTHETIC_QUESTIONS, store, config)
            pending = [key for key in keys if key not in store.finished]
            return runner.run(pending, read_crop), dict(store.lines())
        finally:
            store.close()

    return run


def test_concurrent_conversations_equal_single_ones(collect):
    unfinished, together = collect(ScriptedQuestioner())
    assert unfinished == 0 and len(KEYS) == len(together)
    _, alone = collect(ScriptedQuestioner(), name="alone.jsonl", in_flight=1)
    for key in KEYS:
        assert together[key]["caption"] == alone[key]["caption"]
        for turn, other in zip(together[key]["turns"], alone[key]["turns"], strict=True):
            assert turn.pop("probability") == pytest.approx(other.pop("probability"), rel=1e-2)
            assert turn == other


def test_language_model_as_questioner_and_its_costs(collect, serve):
    server = serve()
    _, finished = collect(prompted(server))
    for line in finished.values():
        turns = [Turn(**turn) for turn in line["turns"]]
        # Four questions and a caption.
        assert len(turns) == 4
        assert [line[name] for name in COST_KEYS] == [5, 500, 50, 0]
        facts = positive_facts([turn for turn in turns if turn.sure])
        assert unsupported_words(line["caption"], fact_sources(facts)) == []
        assert all(turn.answer in line["caption"] for turn in facts)
    assert collect(prompted(server)) == (0, finished)
    assert server.requests == 5 * 19


@pytest.mark.torch
def test_local_phi3_captions_every_item(collect, tiny_phi3):
    """The weights are random: replies are refused or open-ended questions."""
    model = open_language_model(f"transformers:{tiny_phi3[1]}")
    unfinished, finished = collect(
        PromptedQuestioner(model, model.name, model.close), keys=KEYS[:4]
    )
    assert unfinished == 0 and len(finished) == 4
    for line in finished.values():
        assert line["calls"] >= 5 and line["completion_tokens"] > 0 and line["caption"]
        facts = positive_facts([Turn(**turn) for turn in line["turns"] if turn["sure"]])
        assert unsupported_words(line["caption"], fact_sources(facts)) == []


def test_stopped_collection_resumes_without_repeated_requests(collect, serve):
    server = serve(lambda prompt, number: valid_reply(prompt, number) if number <= 40 else 500)
    unfinished, first = collect(prompted(server), keys=KEYS[:12])
    assert len(first) + unfinished == 12 and unfinished >= 4
    requests = server.requests
    server.reply = valid_reply
    unfinished, finished = collect(prompted(server))
    assert unfinished == 0 and len(finished) == 19 and finished.items() > first.items()
    # The first 40 replies are in the journal, so that only the others are requested.
    assert server.requests - requests == 5 * 19 - 40
    assert all(line["calls"] == 5 and len(line["turns"]) == 4 for line in finished.values())


def test_unreliable_server_loses_no_item(collect, serve):
    def unreliable(prompt, number):
        if number % 7 == 0:
            return 500
        return "blah blah" if number % 5 == 0 else valid_reply(prompt, number)

    model = ChatClient(serve(unreliable).url, config=dataclasses.replace(SERVER, retries=4))
    unfinished, finished = collect(PromptedQuestioner(model, model.name, model.close))
    assert unfinished == 0 and len(finished) == 19
    assert sum(line["refused"] for line in finished.values()) > 0


def test_failures_in_a_row_stop_the_run(collect, serve):
    with pytest.raises(InputError, match="no reply 16 times in a row .* goes on where this"):
        collect(prompted(serve(lambda prompt, number: 500)))


def test_unreadable_image_stops_the_run(collect):
    def broken(key):
        raise InputError("image 7 does not decode")

    with pytest.raises(InputError, match="image 7"):
        collect(ScriptedQuestioner(), read_crop=broken)


def test_caption_in_the_journal_is_not_requested_again(collect, serve, tmp_path):
    """A kill between the last reply and the finished line."""
    server = serve()
    _, finished = collect(prompted(server), keys=KEYS[:2])
    out = tmp_path / "out.jsonl"
    out.write_text(out.read_text().splitlines(keepends=True)[0])
    requests = server.requests
    assert collect(prompted(server), keys=KEYS[:2]) == (0, finished)
    assert server.requests == requests
