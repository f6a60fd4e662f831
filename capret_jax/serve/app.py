"""A web page and a JSON API: a photo in, the garments in it and the shop's items like them out.

    python -m capret_jax.serve.app --model=runs/demo [--index=runs/demo/index] [--port=8000]

The page is at /, the API's documentation at /docs, metrics for Prometheus at /metrics. The server
listens on this machine alone unless --host says otherwise. Requests never name files.
"""

import os
import pathlib

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import uvicorn
from absl import flags, logging

from capret_jax.command_line import run
from capret_jax.config import DetectionConfig
from capret_jax.serve.api import create_app
from capret_jax.serve.encoder import BATCHES
from capret_jax.serve.searcher import Searcher
from capret_jax.serve.service import Limits

_MODEL = flags.DEFINE_string("model", None, "Training workdir or converted model.", required=True)
_INDEX = flags.DEFINE_string("index", None, "What build_index.py wrote; MODEL/index by default.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Another than the model's own.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.", 0, 65535)
_UPLOAD = flags.DEFINE_integer("max_upload_mb", 20, "Largest request.", lower_bound=1)
_WAITING = flags.DEFINE_integer("max_waiting", 512, "Requests at once; more are refused.", 1)


def main(argv: list[str]) -> None:
    """Loads, compiles, serves."""
    del argv
    logging.set_verbosity(logging.WARNING)
    detection = DetectionConfig(batch_size=BATCHES[1])
    searcher = Searcher.from_dir(_MODEL.value, _INDEX.value, _TOKENIZER.value, detection)
    folder = pathlib.Path(_INDEX.value or pathlib.Path(_MODEL.value) / "index")
    limits = Limits(upload_bytes=_UPLOAD.value * 2**20, waiting=_WAITING.value)
    print(f"{len(searcher.index)} items, {searcher.index.engine.kind}; compiling ...", flush=True)
    searcher.encoder.warm_up()
    print(f"http://{_HOST.value}:{_PORT.value}", flush=True)
    app = create_app(searcher, folder, limits)
    # Uvicorn hangs up after 5 idle seconds, which a busy client takes for a lost request.
    where, port, patience = _HOST.value, _PORT.value, 75
    uvicorn.run(app, host=where, port=port, log_level="warning", timeout_keep_alive=patience)


if __name__ == "__main__":
    run(main)
