"""Captions by conversation: a language model asks about each garment, X2-VLM answers, and the
language model summarizes.

    python tools/collect_captions.py --limit=1000 --out=captions.jsonl
    python tools/collect_captions.py --config=configs/df2_finetune.py --model=DIR \\
        --questioner=http://localhost:8000/v1 --out=captions.jsonl

`--questioner` is "script" (the list of questions, no language model), the address of an
OpenAI-compatible server, or transformers:PATH. `--method=captioner` takes X2-VLM's own captions in
place of a conversation, which begin behind the prompt that the model was trained with;
`--method=ic3` several of them, condensed by the language model.

Without `--config` the items are those of the synthetic dataset. Without `--model` (or
`config.init_from`) a small VQA model answers; it is trained on other drawings at first use, in
runs/answerer. `--config.data.captions.file` reads OUT; a second call resumes where the first one
stopped. `--part=i/n` is the i-th of n processes or machines, each with its own OUT (and its own
device, by CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS); `cat` puts them together.
"""

import json
import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags
from ml_collections import config_flags

from capret_jax.captioning.chat_client import ServerConfig
from capret_jax.captioning.collection import collect_captions
from capret_jax.captioning.config import METHODS, SPLITS, CollectConfig
from capret_jax.captioning.conversation import ConversationConfig
from capret_jax.captioning.demo_vqa_model import ensure_demo_vqa_model
from capret_jax.captioning.questioner_factory import open_questioner
from capret_jax.captioning.transcripts import format_conversations
from capret_jax.command_line import load_config, parse_part, run
from capret_jax.config import ComputeConfig, DataConfig, ExperimentConfig, from_config_dict
from capret_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config whose data, compute and init_from to use."
)
_MODEL = flags.DEFINE_string(
    "model", "", "Folder of the captioning model: a converted checkpoint, or a workdir."
)
_OUT = flags.DEFINE_string("out", None, "JSON lines to write, or to continue.", required=True)
_METHOD = flags.DEFINE_enum("method", "conversation", METHODS, "Source of the captions.")
_QUESTIONER = flags.DEFINE_string("questioner", "script", "script, URL, or transformers:PATH.")
_LANGUAGE_MODEL = flags.DEFINE_string(
    "language_model", "", "Name of a model of the server; empty for its first."
)
_SPLITS = flags.DEFINE_list("splits", list(SPLITS), "Splits whose items are captioned.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Items at most; 0 for all.", lower_bound=0)
_PART = flags.DEFINE_string("part", "0/1", "i/n: the i-th of n parts, from 0.")
_TURNS = flags.DEFINE_integer("max_turns", 8, "Questions about an item, at most.")
_PATIENCE = flags.DEFINE_integer(
    "patience", 3, "Turns in a row without a new fact after which a conversation ends."
)
_SURE = flags.DEFINE_float("sure", 0.5, "Calibrated probability from which an answer is a fact.")
_IN_FLIGHT = flags.DEFINE_integer("in_flight", 512, "Conversations at once.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images, and questions, per call of the model.")
_WORKERS = flags.DEFINE_integer("workers", 32, "Requests to a server at once.")
_RATE = flags.DEFINE_float("per_second", 0.0, "Requests begun per second at most; 0: no limit.")
_TIMEOUT = flags.DEFINE_float("timeout", 60.0, "Seconds to wait for a reply.")
_RETRIES = flags.DEFINE_integer("retries", 4, "Repetitions of a request that failed.")
_PRICES = flags.DEFINE_list(
    "prices", [], "Prices of a million tokens of prompts, and of replies: 0.05,0.15"
)
_SHOW = flags.DEFINE_integer("show", 0, "Conversations to print at the end.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Collects captions, and prints a summary."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}.")
    prices = _parse_prices()
    _reject_unused_flags()
    config = _collect_config()
    experiment = from_config_dict(load_config(_CONFIG)) if flags.FLAGS["config"].present else None
    data = experiment.data if experiment else DataConfig()
    compute = experiment.compute if experiment else ComputeConfig()
    questioner = open_questioner(config)  # checked before any long computation
    model_dir = _model_folder(data, experiment)
    summary = collect_captions(
        data, model_dir, _OUT.value, config, questioner=questioner, compute=compute
    )
    if prices:
        prompt_price, reply_price = prices
        cost = summary["prompt_tokens"] * prompt_price + summary["completion_tokens"] * reply_price
        summary["price_per_1000_items"] = cost / 1000
    if _SHOW.value:
        print(format_conversations(_OUT.value, _SHOW.value))
    print(json.dumps(summary, indent=2))
    if summary["unfinished"]:
        raise InputError(
            f"{summary['unfinished']} items got no reply: run the same command again for them."
        )


def _collect_config() -> CollectConfig:
    return CollectConfig(
        method=_METHOD.value,
        questioner=_QUESTIONER.value,
        language_model=_LANGUAGE_MODEL.value,
        splits=tuple(_SPLITS.value),
        limit=_LIMIT.value,
        part=parse_part(_PART.value),
        in_flight=_IN_FLIGHT.value,
        batch_size=_BATCH.value,
        dialogue=ConversationConfig(_TURNS.value, _PATIENCE.value, _SURE.value),
        server=ServerConfig(_WORKERS.value, _RATE.value, _TIMEOUT.value, _RETRIES.value),
    )


def _reject_unused_flags() -> None:
    """Refuses flags that have no effect with the method and the questioner."""
    is_conversation = _METHOD.value == "conversation"
    uses_server = _QUESTIONER.value.startswith("http")
    conversation_flags: list[flags.FlagHolder] = [_TURNS, _PATIENCE, _SURE]
    server_flags: list[flags.FlagHolder] = [_LANGUAGE_MODEL, _WORKERS, _RATE, _TIMEOUT, _RETRIES]
    for flag in conversation_flags:
        if flag.present and not is_conversation:
            raise InputError(f"--{flag.name} is for --method=conversation.")
    for flag in server_flags:
        if flag.present and not uses_server:
            raise InputError(f"--{flag.name} is for a server as --questioner.")


def _model_folder(data: DataConfig, experiment: ExperimentConfig | None) -> str:
    """The folder of the captioning model; empty where the method needs none."""
    folder = _MODEL.value or (experiment.init_from if experiment else "")
    if folder or _METHOD.value == "annotations":
        return folder
    if data.name != "synthetic":
        raise InputError(
            "there is no model to answer questions: set --model to a converted VQA checkpoint "
            "(tools/convert_torch_ckpt.py)."
        )
    return ensure_demo_vqa_model()


def _parse_prices() -> tuple[float, float] | None:
    """Parses the prices of a million tokens of prompts and of replies; None if not set."""
    texts = _PRICES.value or []
    try:
        prices = [float(text) for text in texts]
    except ValueError as error:
        raise InputError(f"--prices={','.join(texts)}: two numbers.") from error
    if not prices:
        return None
    if len(prices) != 2:
        raise InputError("--prices takes two numbers: of prompt tokens, and of reply tokens.")
    return prices[0], prices[1]


def cli() -> None:
    """Runs the command: the console script, and `tools/collect_captions.py`."""
    run(main, buckets=("model",))
