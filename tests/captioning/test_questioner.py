"""Questioners: prompts, valid and refused replies, fallbacks and costs."""

import asyncio
from collections import Counter

import pytest

from capret_jax.captioning.conversation import Conversation, ConversationConfig
from capret_jax.captioning.language_model import Completion, NoReply
from capret_jax.captioning.prompted_questioner import PromptedQuestioner
from capret_jax.captioning.questioner import QuestionerError, ScriptedQuestioner
from capret_jax.captioning.reply_text import MAX_REPLY_CHARS
from capret_jax.data.vqa import DEEPFASHION2_QUESTIONS, SYNTHETIC_QUESTIONS


class FakeModel:
    """Returns the replies of a list, and the last one repeatedly."""

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

    model = FakeModel(*replies)
    return model, PromptedQuestioner(model, "test", close)


@pytest.fixture
def conversation():
    conversation = Conversation(SYNTHETIC_QUESTIONS, ConversationConfig())
    for question, answer, probability in (
        ("What kind is it?", "vest dress", 0.9),
        ("What colour is it?", "navy", 0.9),
        ("What pattern?", "dots", 0.1),
    ):
        conversation.add_question(question)
        conversation.add_answer(answer, probability)
    return conversation


def test_script_asks_all_questions_that_apply():
    conversation, asked = Conversation(SYNTHETIC_QUESTIONS, ConversationConfig()), []
    while (reply := asyncio.run(ScriptedQuestioner().ask(conversation))).text:
        asked.append(reply.text)
        conversation.add_question(reply.text)
        conversation.add_answer("skirt" if "kind" in reply.text else "dots", 0.9)
    assert asked == [
        f"{q.text}?" for q in SYNTHETIC_QUESTIONS if "skirt" not in q.excluded_categories
    ]


def test_prompt_has_the_answers_and_the_remaining_topics(conversation):
    model, questioner = prompted("What is printed on it?")
    assert asyncio.run(questioner.ask(conversation)).text == "What is printed on it?"
    (prompt,) = model.prompts
    assert "What colour is it? navy" in prompt
    assert "What pattern? not sure" in prompt and "dots" not in prompt
    assert "one of these: sleeve, print, neckline." in prompt


def test_invalid_reply_is_retried_with_the_reason(conversation):
    model, questioner = prompted("I am a model.", "What colour is it?", "What print has it?")
    reply = asyncio.run(questioner.ask(conversation))
    assert reply.text == "What print has it?"
    assert reply.usage == (3, 30, 6, ("I am a model.", "What colour is it?"))
    assert "there is no question in it" in model.prompts[1]
    assert "asked before" in model.prompts[2]


def test_uninformative_questions_are_refused(conversation):
    model, questioner = prompted("Does it have pockets?", "Where are its pockets?")
    assert asyncio.run(questioner.ask(conversation)).text == "Where are its pockets?"
    assert "ask what, which or how" in model.prompts[1]
    model, questioner = prompted("DONE", "What colour is it?")
    assert asyncio.run(questioner.ask(Conversation(SYNTHETIC_QUESTIONS, ConversationConfig()))).text
    assert "too early" in model.prompts[1]
    _, questioner = prompted("DONE")
    assert asyncio.run(questioner.ask(conversation)).text is None


@pytest.mark.parametrize("empty", ["What is this?", "How would you tell?", "What about it?"])
def test_questions_about_nothing_are_refused(conversation, empty):
    model, questioner = prompted(empty, "Where are its pockets?")
    assert asyncio.run(questioner.ask(conversation)).text == "Where are its pockets?"
    assert "name one thing" in model.prompts[1]


def test_questions_that_do_not_apply_are_refused():
    conversation = Conversation(SYNTHETIC_QUESTIONS, ConversationConfig())
    conversation.add_question("What kind is it?")
    conversation.add_answer("trousers", 0.9)
    model, questioner = prompted("What sleeves does it have?", "What colour is it?")
    assert asyncio.run(questioner.ask(conversation)).text == "What colour is it?"
    assert "has no sleeve" in model.prompts[1]


def test_caption_without_all_facts_is_refused(conversation):
    model, questioner = prompted("A vest dress.", "A navy vest dress.")
    assert asyncio.run(questioner.summarize(conversation)).text == "A navy vest dress."
    assert "leaves out: navy" in model.prompts[1]


def test_failure_has_the_cost_of_refused_replies(conversation):
    _, questioner = prompted("I am a model.", NoReply("timeout"))
    with pytest.raises(QuestionerError, match="timeout") as raised:
        asyncio.run(questioner.ask(conversation))
    assert raised.value.usage == (1, 10, 2, ("I am a model.",))


def test_script_replaces_a_model_with_invalid_replies(conversation):
    model, questioner = prompted("I am a model.")
    reply = asyncio.run(questioner.ask(conversation))
    assert reply.text == "what sleeves does it have?"
    assert reply.usage.calls == 3 == len(model.prompts)


def test_caption_with_unsupported_words_is_refused(conversation):
    model, questioner = prompted("A navy silk vest dress.", "A navy vest dress.")
    reply = asyncio.run(questioner.summarize(conversation))
    assert reply.text == "A navy vest dress."
    assert "not known: silk" in model.prompts[1]
    assert "dots" not in model.prompts[0]  # an uncertain answer is no fact
    _, questioner = prompted("A navy silk vest dress.")
    assert asyncio.run(questioner.summarize(conversation)).text == "a navy vest dress"


def test_caption_without_facts_needs_no_model():
    model, questioner = prompted("A red vest.")
    conversation = Conversation(SYNTHETIC_QUESTIONS, ConversationConfig())
    assert asyncio.run(questioner.summarize(conversation)).text == "an item"
    assert not model.prompts


def test_condensed_caption_has_only_words_of_its_sources():
    captions = ["a red vest", "a red sling", "a rose vest with dots"]
    model, questioner = prompted("A red vest with a zip.", "A red vest.")
    assert asyncio.run(questioner.condense(captions)).text == "A red vest."
    assert all(f"- {caption}" in model.prompts[0] for caption in captions)
    _, questioner = prompted("")
    assert asyncio.run(questioner.condense(captions)).text == "a red vest"


def test_failure_of_the_model_is_a_no_reply(conversation):
    _, questioner = prompted(NoReply("timeout"))
    with pytest.raises(NoReply):
        asyncio.run(questioner.ask(conversation))


def test_longest_prompt_fits_the_context():
    conversation = Conversation((), ConversationConfig(max_turns=24, patience=24))
    for number in range(24):
        conversation.add_question(f"Question number {number} of twenty words " + "word " * 14 + "?")
        conversation.add_answer("a long answer of nine tokens as written here", 0.9)
    model, questioner = prompted("DONE")
    asyncio.run(questioner.ask(conversation))
    # About 4 characters make a token: 2,048 of them, with room for the reply.
    assert len(model.prompts[0]) / 4 < 1900


def choosing(*replies):
    """A questioner whose model chooses the last wording."""
    offered = []

    async def choose(prompt, wordings):
        offered.append(wordings)
        return Completion(wordings[-1], 20, 30)

    async def close():
        pass

    model = FakeModel(*replies)
    return model, offered, PromptedQuestioner(model, "test", close, choose)


def test_model_chooses_after_two_refused_replies_about_an_item(conversation):
    model, offered, questioner = choosing("I am a model.", "So am I.", "What print is it?")
    reply = asyncio.run(questioner.ask(conversation))
    assert reply.text == "How would you describe the neckline?" and reply.source == "chosen"
    assert reply.usage == (3, 40, 34, ("I am a model.", "So am I."))
    conversation.refusals = 2
    assert asyncio.run(questioner.ask(conversation)).source == "chosen"
    assert len(model.prompts) == 2
    assert {conversation.topic_of(wording) for wording in offered[0]} == {
        "sleeve",
        "print",
        "neckline",
    }
    caption = asyncio.run(questioner.summarize(conversation))
    assert (caption.text, caption.source) == ("It is a navy vest dress.", "chosen")


def test_valid_reply_is_not_replaced_by_a_chosen_one(conversation):
    _, offered, questioner = choosing("What print is it?")
    reply = asyncio.run(questioner.ask(conversation))
    assert (reply.text, reply.source, offered) == ("What print is it?", "written", [])


def test_script_ends_a_conversation_without_wordings():
    _, offered, questioner = choosing("I am a model.")
    conversation = Conversation((), ConversationConfig())
    reply = asyncio.run(questioner.ask(conversation))
    assert reply.text is None and reply.source == "scripted" and not offered


def test_every_listed_question_has_several_wordings():
    conversation = Conversation(DEEPFASHION2_QUESTIONS, ConversationConfig())
    topics = Counter(map(conversation.topic_of, conversation.question_wordings()))
    assert topics.keys() == {question.topic for question in DEEPFASHION2_QUESTIONS}
    assert min(topics.values()) >= 2


def test_refused_replies_are_bounded_and_have_no_invisible_characters(conversation):
    model, questioner = prompted("\ud800\x1b[2J" + "x" * 10_000_000, "What print is it?")
    reply = asyncio.run(questioner.ask(conversation))
    (refused,) = reply.usage.refused
    assert refused.startswith("[2Jxxx") and len(refused) <= MAX_REPLY_CHARS
    assert len(model.prompts[1]) < len(model.prompts[0]) + 400


def test_caption_that_repeats_a_fact_is_refused():
    conversation = Conversation(SYNTHETIC_QUESTIONS, ConversationConfig())
    conversation.add_question("What kind is it?")
    conversation.add_answer("long sleeve dress", 0.9)
    conversation.add_question("What sleeves does it have?")
    conversation.add_answer("long", 0.9)
    good = "A long-sleeved dress."
    model, questioner = prompted("A long-sleeved dress with a long sleeve.", good)
    assert asyncio.run(questioner.summarize(conversation)).text == good
    assert "it repeats: long, sleeved, sleeve" in model.prompts[1]
    assert "sleeve: long" not in model.prompts[0]
