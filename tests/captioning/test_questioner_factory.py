"""Questioners and language models opened by their names."""

import asyncio

import pytest

from capret_jax.captioning.config import CollectConfig
from capret_jax.captioning.prompted_questioner import PromptedQuestioner
from capret_jax.captioning.questioner import ScriptedQuestioner
from capret_jax.captioning.questioner_factory import open_language_model, open_questioner
from capret_jax.errors import InputError


def test_script_needs_no_language_model():
    assert isinstance(open_questioner(CollectConfig()), ScriptedQuestioner)


def test_address_opens_a_language_model(serve):
    questioner = open_questioner(CollectConfig(questioner=serve().url))
    assert isinstance(questioner, PromptedQuestioner) and questioner.name == "tiny"
    asyncio.run(questioner.close())


def test_unknown_source_is_an_input_error():
    with pytest.raises(InputError, match="--questioner=phi is neither"):
        open_language_model("phi")
