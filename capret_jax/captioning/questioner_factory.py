"""Opens the questioner and the language model that a configuration names."""

from capret_jax.captioning.chat_client import ChatClient, ServerConfig
from capret_jax.captioning.config import CollectConfig
from capret_jax.captioning.prompted_questioner import PromptedQuestioner
from capret_jax.captioning.questioner import Questioner, ScriptedQuestioner
from capret_jax.captioning.transformers_model import TransformersModel
from capret_jax.errors import InputError


def open_questioner(config: CollectConfig) -> Questioner:
    """Opens the questioner of a collection; the scripted one where the method needs none.

    Raises:
        InputError: its language model cannot be reached.
    """
    if config.questioner == "script" or config.method in ("captioner", "annotations"):
        return ScriptedQuestioner()
    model = open_language_model(config.questioner, config.language_model, config.server)
    # Chat servers have no likelihoods to choose by.
    choose = model.choose if isinstance(model, TransformersModel) else None
    return PromptedQuestioner(model, model.name, model.close, choose)


def open_language_model(
    source: str, model: str = "", config: ServerConfig = ServerConfig()
) -> ChatClient | TransformersModel:
    """Opens a language model.

    Args:
        source: address of a server, or "transformers:PATH", see `TransformersModel`.
        model: name of one of the server's models; empty for the first.
        config: limits of the requests to the server.

    Raises:
        InputError: the source has another form, the server cannot be reached, or it has no such
            model.
    """
    if source.startswith("transformers:"):
        return TransformersModel(source.removeprefix("transformers:"))
    if source.startswith(("http://", "https://")):
        return ChatClient(source, model, config)
    raise InputError(
        f"--questioner={source} is neither script, nor the address of a server (http://...), nor "
        "transformers:PATH."
    )
