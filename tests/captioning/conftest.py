"""A small VQA model of random weights, and a server with OpenAI's chat completions API."""

import contextlib
import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest

from capret_jax.captioning.batched_model import BatchedModel
from capret_jax.captioning.chat_client import ChatClient, ServerConfig
from capret_jax.captioning.prompted_questioner import PromptedQuestioner
from capret_jax.captioning.store import ItemKey
from capret_jax.captioning.vqa_answerer import VqaAnswerer
from capret_jax.config import DataConfig, ExperimentConfig, LoopConfig, LossConfig, OptimizerConfig
from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.data.vqa import SYNTHETIC_QUESTIONS, answers_of, vocabulary_of
from capret_jax.models.x2vlm import init_params
from tests.small_model import SMALL_MODEL

# One item for each of `images`.
KEYS = [ItemKey("train", number, 1) for number in range(19)]
SERVER = ServerConfig(workers=8, timeout=2.0, retries=1)
ANSWERING = dataclasses.replace(SMALL_MODEL, decoder_layers=1)


def answering_config(data: DataConfig) -> ExperimentConfig:
    """Config of a short training of VQA and captioning; the same everywhere, to compile it once."""
    return ExperimentConfig(
        batch_size=16,
        model=ANSWERING,
        data=data,
        loss=LossConfig(mlm=1.0, mlm_causal=True, vqa=1.0, arcface=0.0, matching_group=2),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        loop=LoopConfig(steps=2, checkpoint_every=2),
    )


@pytest.fixture(scope="session")
def encode(tmp_path_factory) -> CaptionEncoder:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    texts, raw = vocabulary_of(SYNTHETIC_QUESTIONS), answers_of(SYNTHETIC_QUESTIONS)
    build_vocabulary(texts, path, ANSWERING.vocab_size, raw=raw)
    return CaptionEncoder(load_tokenizer(str(path)), 16)


@pytest.fixture(scope="session")
def answering_params():
    return jax.jit(init_params, static_argnums=0)(ANSWERING, jax.random.key(0))


@pytest.fixture(scope="session")
def answerer(encode, answering_params) -> VqaAnswerer:
    return VqaAnswerer(BatchedModel(ANSWERING, answering_params, encode, batch_size=8))


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    size = ANSWERING.image_size
    return np.random.default_rng(0).integers(0, 256, (19, size, size, 3), np.uint8)


class ChatServer:
    """A server whose replies a test defines.

    Attributes:
        prompts: number of replies to each prompt.
        requests: number of requests.
        reply: (prompt, number of requests so far) -> the reply's text. An int is an HTTP status
            instead, a pair a status and its Retry-After, a float seconds until the connection is
            dropped, a dict another body, and an iterator a body that is sent letter by letter.
    """

    def __init__(self, reply):
        self.prompts: Counter = Counter()
        self.reply, self.requests = reply, 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._send(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                outer.answer(self, body)

            def _send(self, status, content, retry_after=None):
                payload = json.dumps(content).encode()
                self.send_response(status)
                if retry_after:
                    self.send_header("Retry-After", retry_after)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, handler, body):
        assert [message["role"] for message in body["messages"]] == ["user"]
        prompt = body["messages"][0]["content"]
        with self._lock:
            self.requests += 1
            reply = self.reply(prompt, self.requests)
        if isinstance(reply, float):
            time.sleep(reply)
            handler.close_connection = True
            return
        if isinstance(reply, int | tuple):
            status, *retry_after = reply if isinstance(reply, tuple) else (reply,)
            handler._send(status, {"error": {"message": "not now"}}, *retry_after)
            return
        if isinstance(reply, Iterator):
            self._send_slowly(handler, reply)
            return
        if isinstance(reply, dict):
            handler._send(200, reply)
            return
        with self._lock:
            self.prompts[prompt] += 1
        choice = {"index": 0, "message": {"role": "assistant", "content": reply}}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        handler._send(200, {"id": "x", "choices": [choice], "usage": usage, "model": "tiny"})

    def _send_slowly(self, handler, letters):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        with contextlib.suppress(OSError):  # the client has gone
            for letter in letters:
                handler.wfile.write(letter.encode())
                time.sleep(0.1)

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


def valid_reply(prompt: str, number: int) -> str:
    """Asks about the first topic of the prompt, or repeats all facts of it in a caption."""
    del number
    if "Facts about a garment" in prompt:
        lines = [line[2:] for line in prompt.splitlines() if line.startswith("- ")]
        return "It has " + " and ".join(" ".join(reversed(line.split(": "))) for line in lines)
    topics = prompt.split("about one of these: ")[1].split(".")[0].split(", ")
    return f"Question: What {topics[0]} does it have?\nAnswer: red" if topics[0] else "DONE"


def prompted(server: ChatServer) -> PromptedQuestioner:
    """A questioner with the server's language model."""
    model = ChatClient(server.url, config=SERVER)
    return PromptedQuestioner(model, model.name, model.close)


@pytest.fixture
def read_crop(images):
    """The crop of one of `KEYS`."""
    return lambda key: images[key.image_id]


@pytest.fixture
def serve():
    """Starts servers, and stops them after the test."""
    servers = []

    def start(reply=valid_reply) -> ChatServer:
        servers.append(ChatServer(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def tiny_phi3(tmp_path_factory):
    """Tokenizer with a chat template, and folder of a Phi-3 of random weights."""
    torch = pytest.importorskip("torch")
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("phi3")
    words = ["<unk>", "<s>", "</s>", "<|user|>", "colour", "?", *(f"word{i}" for i in range(90))]
    words = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}<|user|> {{ m['content'] }} {% endfor %}"
    fast.save_pretrained(path)
    config = transformers.Phi3Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.Phi3ForCausalLM(config).save_pretrained(path)
    return fast, path
