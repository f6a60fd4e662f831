"""Serves a web page and a JSON API that find a shop's items by photo, text, or both.

    python -m capret_jax.serve.app --model=runs/demo [--index=runs/demo/index] [--port=8000]

The page is at /, the API's documentation at /docs, and metrics for Prometheus at /metrics. The
server listens on this machine alone unless --host is given. Requests never name files.
"""

import dataclasses
import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import uvicorn
from absl import flags, logging

from capret_jax.checkpoints.loading import ModelFolder
from capret_jax.command_line import run
from capret_jax.config.data import RESIZES
from capret_jax.config.evaluation import DETECTORS
from capret_jax.config.model import DTYPES
from capret_jax.serve.api import Access, create_app
from capret_jax.serve.connections import LimitedConnection
from capret_jax.serve.encoder import BATCH_SIZES
from capret_jax.serve.searcher import Searcher, index_folder
from capret_jax.serve.service import ServiceLimits

_MODEL = flags.DEFINE_string("model", None, "Training workdir or converted model.", required=True)
_INDEX = flags.DEFINE_string("index", None, "Folder of the index; MODEL/index by default.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Tokenizer in place of the model's own.")
_RESIZE = flags.DEFINE_enum(
    "resize", None, RESIZES, "How pictures are resized; by default as in the model's training."
)
_PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    DTYPES,
    "Precision of matrix products; bfloat16 is faster on GPUs, TPUs.",
)
_DETECTOR = flags.DEFINE_enum(
    "detector",
    None,
    ["auto", *DETECTORS],
    "How garments are found, instead of as in the model's run (config.evaluation.detection.kind).",
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.", 0, 65535)
_MAX_UPLOAD = flags.DEFINE_integer("max_upload_mb", 20, "Largest request, in MB.", lower_bound=1)
_MAX_WAITING = flags.DEFINE_integer(
    "max_waiting", 512, "Requests that may wait; further ones are answered with 503.", 1
)
_HOSTS = flags.DEFINE_list(
    "allowed_hosts",
    [],
    "Names by which clients, or a proxy, address the server; by default this machine's own names, "
    "or any with --host=0.0.0.0.",
)
_METRICS = flags.DEFINE_bool("metrics", True, "Serve /metrics.")

# Seconds. Uvicorn closes connections that are idle for 5 seconds by default, which a busy client
# sees as a lost request.
_KEEP_ALIVE = 75
# Seconds that requests may still take when the server is told to end.
_SHUTDOWN = 10


def main(argv: list[str]) -> None:
    """Loads the model and the index, compiles, and serves."""
    del argv
    logging.set_verbosity(logging.WARNING)
    detection = ModelFolder(_MODEL.value).detection
    kind = _DETECTOR.value or detection.kind
    detection = dataclasses.replace(detection, kind=kind, batch_size=BATCH_SIZES[1])
    searcher = Searcher.from_dir(
        _MODEL.value,
        _INDEX.value,
        _TOKENIZER.value,
        detection,
        resize=_RESIZE.value,
        precision=_PRECISION.value,
    )
    index_dir = index_folder(_MODEL.value, _INDEX.value)
    limits = ServiceLimits(upload_bytes=_MAX_UPLOAD.value * 2**20, waiting=_MAX_WAITING.value)
    index = searcher.index
    print(f"{len(index)} items, {index.engine.description}; compiling ...", flush=True)
    searcher.encoder.warm_up()
    print(f"http://{_HOST.value}:{_PORT.value}", flush=True)
    uvicorn.run(
        create_app(searcher, index_dir, limits, Access(_hosts(), _METRICS.value)),
        host=_HOST.value,
        port=_PORT.value,
        http=LimitedConnection,
        log_level="warning",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_SHUTDOWN,
    )


def _hosts() -> tuple[str, ...]:
    """Returns the names by which clients may address the server."""
    if _HOSTS.value:
        return tuple(_HOSTS.value)
    if _HOST.value in ("0.0.0.0", "::"):
        return ("*",)
    return ("localhost", "127.0.0.1", "[::1]", _HOST.value)


def cli() -> None:
    """Runs the command: the console script."""
    run(main, buckets=("model", "index", "tokenizer"))


if __name__ == "__main__":
    cli()
