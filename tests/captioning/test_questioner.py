"""Language models that ask and sum up: what they may say, and what happens when they do not."""

import asyncio

import pytest

from capret_jax.captioning.conversation import Dialogue, DialogueConfig
from capret_jax.captioning.language_models import Completion, NoReply
from capret_jax.captioning.questioner import NoAnswer, Prompted, Script
from capret_jax.data.vqa import SYNTHETIC_QUESTIONS


class Model:
    """Gives the replies of a list, the last one again and again."""

    def __init__(self, *replies):
        self.replies, self.prompts = list(replies), []

    async def __call__(self, prompt: str) -> Completion:
        self.prompts.append(prompt)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return Completion(reply, 10, 2)


def prompted(*replies):
    async def close():
        pass

    model = Model(*replies)
    return model, Prompted(model, "test", close)


@pytest.fixture
def talk():
    talk = Dialogue(SYNTHETIC_QUESTIONS, DialogueConfig())
    for question, answer, probability in (
        ("What kind is it?", "vest dress", 0.9),
        ("What colour is it?", "navy", 0.9),
        ("What pattern?", "dots", 0.1),
    ):
        talk.ask(question)
        talk.answer(answer, probability)
    return talk


def test_the_script_asks_all_that_suits_and_then_nothing():
    talk, asked = Dialogue(SYNTHETIC_QUESTIONS, DialogueConfig()), []
    while (said := asyncio.run(Script().ask(talk))).text:
        asked.append(said.text)
        talk.ask(said.text)
        talk.answer("skirt" if "kind" in said.text else "dots", 0.9)
    assert asked == [f"{q.text}?" for q in SYNTHETIC_QUESTIONS if "skirt" not in q.except_for]


def test_the_model_knows_what_was_said_and_what_is_open(talk):
    model, questioner = prompted("What is printed on it?")
    assert asyncio.run(questioner.ask(talk)).text == "What is printed on it?"
    (prompt,) = model.prompts
    assert "What colour is it? navy" in prompt
    assert "What pattern? not sure" in prompt and "dots" not in prompt
    assert "one of these: sleeve, print, neckline." in prompt


def test_nonsense_is_asked_again_with_the_reason(talk):
    model, questioner = prompted("I am a model.", "What colour is it?", "What print has it?")
    said = asyncio.run(questioner.ask(talk))
    assert said.text == "What print has it?"
    assert said.usage == (3, 30, 6, ("I am a model.", "What colour is it?"))
    assert "there is no question in it" in model.prompts[1]
    assert "asked before" in model.prompts[2]


def test_questions_that_bring_nothing_are_refused(talk):
    model, questioner = prompted("Does it have pockets?", "Where are its pockets?")
    assert asyncio.run(questioner.ask(talk)).text == "Where are its pockets?"
    assert "ask what, which or how" in model.prompts[1]
    model, questioner = prompted("DONE", "What colour is it?")
    assert asyncio.run(questioner.ask(Dialogue(SYNTHETIC_QUESTIONS, DialogueConfig()))).text
    assert "too early" in model.prompts[1]
    _, questioner = prompted("DONE")
    assert asyncio.run(questioner.ask(talk)).text is None


def test_sleeves_of_trousers_are_not_asked_for():
    talk = Dialogue(SYNTHETIC_QUESTIONS, DialogueConfig())
    talk.ask("What kind is it?")
    talk.answer("trousers", 0.9)
    model, questioner = prompted("What sleeves does it have?", "What colour is it?")
    assert asyncio.run(questioner.ask(talk)).text == "What colour is it?"
    assert "has no sleeve" in model.prompts[1]


def test_a_caption_that_leaves_facts_out_is_refused(talk):
    model, questioner = prompted("A vest dress.", "A navy vest dress.")
    assert asyncio.run(questioner.sum_up(talk)).text == "A navy vest dress."
    assert "leaves out: navy" in model.prompts[1]


def test_what_was_paid_before_the_silence_is_counted(talk):
    _, questioner = prompted("I am a model.", NoReply("timeout"))
    with pytest.raises(NoAnswer, match="timeout") as raised:
        asyncio.run(questioner.ask(talk))
    assert raised.value.usage == (1, 10, 2, ("I am a model.",))


def test_after_nothing_but_nonsense_the_script_goes_on(talk):
    model, questioner = prompted("I am a model.")
    said = asyncio.run(questioner.ask(talk))
    assert said.text == "what sleeves does it have?"
    assert said.usage.calls == 3 == len(model.prompts)


def test_a_caption_that_says_more_than_the_facts_is_refused(talk):
    model, questioner = prompted("A navy silk vest dress.", "A navy vest dress.")
    said = asyncio.run(questioner.sum_up(talk))
    assert said.text == "A navy vest dress."
    assert "not known: silk" in model.prompts[1]
    assert "dots" not in model.prompts[0]  # not sure is no fact
    _, questioner = prompted("A navy silk vest dress.")
    assert asyncio.run(questioner.sum_up(talk)).text == "a navy vest dress"


def test_nothing_known_needs_no_model():
    model, questioner = prompted("A red vest.")
    assert (
        asyncio.run(questioner.sum_up(Dialogue(SYNTHETIC_QUESTIONS, DialogueConfig()))).text
        == "an item"
    )
    assert not model.prompts


def test_captions_are_condensed_in_their_own_words():
    captions = ["a red vest", "a red sling", "a rose vest with dots"]
    model, questioner = prompted("A red vest with a zip.", "A red vest.")
    assert asyncio.run(questioner.condense(captions)).text == "A red vest."
    assert all(f"- {caption}" in model.prompts[0] for caption in captions)
    _, questioner = prompted("")
    assert asyncio.run(questioner.condense(captions)).text == "a red vest"


def test_silence_is_passed_on(talk):
    _, questioner = prompted(NoReply("timeout"))
    with pytest.raises(NoReply):
        asyncio.run(questioner.ask(talk))


def test_prompts_stay_short_however_long_the_talk():
    talk = Dialogue((), DialogueConfig(max_turns=24, patience=24))
    for number in range(24):
        talk.ask(f"Question number {number} of twenty words " + "word " * 14 + "?")
        talk.answer("a long answer of nine tokens as written here", 0.9)
    model, questioner = prompted("DONE")
    asyncio.run(questioner.ask(talk))
    # About 4 characters make a token: 2,048 of them, with room for the reply.
    assert len(model.prompts[0]) / 4 < 1900
