"""Captions by conversation: a language model asks about each garment, X2-VLM answers, one sums up.

    python tools/collect_captions.py --limit=1000 --out=captions.jsonl
    python tools/collect_captions.py --config=configs/df2_finetune.py --model=DIR \\
        --questioner=http://localhost:8000/v1 --out=captions.jsonl

`--questioner` is "script" (the list of questions, no language model), the address of an
OpenAI-compatible server, or transformers:PATH. `--method=captioner` takes X2-VLM's own captions in
place of a conversation, `--method=ic3` several of them, condensed by the language model.

Without `--config` the items are those of the embedded dataset; without `--model` (or
`config.init_from`) the one who answers is a small model that is trained on other drawings at first
use, in runs/answerer. OUT is what `--config.data.captions.file` reads; a second call goes on
where the first one stopped. `--part=i/n` is the i-th of n processes or machines, each with its own
OUT (and its own device, by CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS); `cat` puts them together.
"""

import dataclasses
import json
import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags
from ml_collections import config_flags

from capret_jax.captioning.collection import (
    METHODS,
    SPLITS,
    CollectConfig,
    collect_captions,
    open_questioner,
)
from capret_jax.captioning.conversation import DialogueConfig
from capret_jax.captioning.language_models import ServerConfig
from capret_jax.captioning.stand_in import stand_in
from capret_jax.command_line import load_config, parse_part, run
from capret_jax.config import ComputeConfig, DataConfig, ExperimentConfig, from_config_dict
from capret_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Whose data (and init_from) to take.")
_MODEL = flags.DEFINE_string("model", "", "Who looks: a converted checkpoint, or a workdir.")
_OUT = flags.DEFINE_string("out", None, "JSON lines to write, or to go on with.", required=True)
_METHOD = flags.DEFINE_enum("method", "conversation", METHODS, "How captions come about.")
_QUESTIONER = flags.DEFINE_string("questioner", "script", "script, URL, or transformers:PATH.")
_LANGUAGE_MODEL = flags.DEFINE_string("language_model", "", "Of a server that has several.")
_SPLITS = flags.DEFINE_list("splits", list(SPLITS), "Whose items.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Items at most; 0 for all.", lower_bound=0)
_PART = flags.DEFINE_string("part", "0/1", "i/n: the i-th of n parts, from 0.")
_TURNS = flags.DEFINE_integer("max_turns", 8, "Questions about an item at most.")
_PATIENCE = flags.DEFINE_integer("patience", 3, "Turns without news after which it ends.")
_SURE = flags.DEFINE_float("sure", 0.5, "Calibrated probability from which an answer is a fact.")
_IN_FLIGHT = flags.DEFINE_integer("in_flight", 512, "Conversations at once.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "PictureBatch, and questions, of one call.")
_WORKERS = flags.DEFINE_integer("workers", 32, "Requests to a server at once.")
_RATE = flags.DEFINE_float("per_second", 0.0, "Requests begun per second at most; 0: no limit.")
_TIMEOUT = flags.DEFINE_float("timeout", 60.0, "Seconds to wait for a reply.")
_RETRIES = flags.DEFINE_integer("retries", 4, "Of a request that failed.")
_PRICES = flags.DEFINE_list("prices", [], "Of a million tokens read, and written: 0.05,0.15")


def main(argv: list[str]) -> None:
    """Collects, and prints what it took."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}.")
    prices = _prices()
    _check_heard()
    config = CollectConfig(
        _METHOD.value,
        _QUESTIONER.value,
        _LANGUAGE_MODEL.value,
        tuple(_SPLITS.value),
        _LIMIT.value,
        *dataclasses.astuple(parse_part(_PART.value)),
        _IN_FLIGHT.value,
        _BATCH.value,
        DialogueConfig(_TURNS.value, _PATIENCE.value, _SURE.value),
        ServerConfig(_WORKERS.value, _RATE.value, _TIMEOUT.value, _RETRIES.value),
    )
    experiment = from_config_dict(load_config(_CONFIG)) if flags.FLAGS["config"].present else None
    data = experiment.data if experiment else DataConfig()
    compute = experiment.compute if experiment else ComputeConfig()
    questioner = open_questioner(config)  # before anything takes long
    looker = _looker(data, experiment)
    took = collect_captions(data, looker, _OUT.value, config, questioner, compute)
    if prices:
        cost = took["prompt_tokens"] * prices[0] + took["completion_tokens"] * prices[1]
        took["price_per_1000_items"] = cost / 1000
    print(json.dumps(took, indent=2))
    if took["unfinished"]:
        raise InputError(
            f"{took['unfinished']} items got no reply: run the same command again for them."
        )


def _check_heard() -> None:
    """Flags that nothing would listen to are mistakes."""
    talks = _METHOD.value == "conversation"
    serves = _QUESTIONER.value.startswith("http")
    for flag in (_TURNS, _PATIENCE, _SURE):
        if flag.present and not talks:
            raise InputError(f"--{flag.name} is for --method=conversation.")
    for flag in (_LANGUAGE_MODEL, _WORKERS, _RATE, _TIMEOUT, _RETRIES):
        if flag.present and not serves:
            raise InputError(f"--{flag.name} is for a server as --questioner.")


def _looker(data: DataConfig, experiment: ExperimentConfig | None) -> str:
    """The model's folder."""
    folder = _MODEL.value or (experiment.init_from if experiment else "")
    if folder or _METHOD.value == "annotations":
        return folder
    if data.name != "synthetic":
        raise InputError(
            "nobody is there to answer: set --model to a converted VQA checkpoint "
            "(tools/convert_torch_ckpt.py)."
        )
    return stand_in()


def _prices() -> list[float]:
    try:
        prices = [float(price) for price in _PRICES.value]
    except ValueError as error:
        raise InputError(f"--prices={','.join(_PRICES.value)}: two numbers.") from error
    if len(prices) not in (0, 2):
        raise InputError("--prices takes two numbers: of tokens read, and of tokens written.")
    return prices


def cli() -> None:
    """Runs the command: the console script, and `tools/collect_captions.py`."""
    run(main)
