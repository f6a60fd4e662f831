"""Benchmark of embedding and training against an equivalent model in PyTorch.

    pip install torch
    python tools/bench_torch.py --batch_size=8 --image_size=224

Base size, float32, random weights, no dropout. The PyTorch model has BEiT and BERT layers of
`transformers` with fused attention, and fused AdamW. Both use the same threads and take turns in
one process. Rates are also given as a fraction of the peak rate of matrix products, measured with
each library.
"""

import dataclasses
import os
import time
from collections.abc import Callable

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import numpy as np
import torch
from absl import app, flags
from jax.sharding import Mesh
from transformers import BeitConfig, BeitModel, BertConfig, BertModel

from capret_jax.config import (
    SIZES,
    DataConfig,
    ExperimentConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
)
from capret_jax.data.batch import Batch
from capret_jax.distributed.batch_share import to_global
from capret_jax.distributed.mesh import make_mesh
from capret_jax.retrieval.embedding import Embedder, PictureBatch
from capret_jax.roofline.flops import ideal_embedding_flops, ideal_step_flops
from capret_jax.roofline.peak import matmul_peak
from capret_jax.train.setup import StepSetup
from capret_jax.train.state import init_state
from capret_jax.train.step import make_step

_BATCH = flags.DEFINE_integer("batch_size", 8, "Number of images, and of texts.")
_SIZE = flags.DEFINE_integer("image_size", 224, "Side of the images in pixels.")
_TOKENS = flags.DEFINE_integer("tokens", 32, "Tokens of each text.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of measurements; the fastest counts.")
_CLASSES = 256
_LOSS = LossConfig(itc=1.0, itm=1.0, box_l1=1.0, box_giou=1.0, arcface=1.0)


def main(argv: list[str]) -> None:
    """Prints images per second of both, and their ratio."""
    del argv
    config = dataclasses.replace(SIZES["base"], image_size=_SIZE.value, dropout=0.0, drop_path=0.0)
    torch.set_num_threads(os.cpu_count() or 1)
    ours, theirs = JaxModel(config), TorchModel(config)
    images = _BATCH.value
    step_flops = ideal_step_flops(_experiment(config), _CLASSES)
    peaks = matmul_peak(_one_device()), _torch_peak()
    print(f"matmul peak: JAX {peaks[0] / 1e9:.0f}, PyTorch {peaks[1] / 1e9:.0f} GFLOP/s")
    print(f"{'images/s':12}{'JAX':>8}{'of peak':>9}{'PyTorch':>9}{'of peak':>9}{'ratio':>7}")
    for name, flops, *calls in (
        ("embedding", ideal_embedding_flops(config, images), ours.embed, theirs.embed),
        ("step", step_flops, ours.train, theirs.train),
    ):
        seconds = _fastest(calls)
        rates = [images / s for s in seconds]
        shares = [flops / s / peak for s, peak in zip(seconds, peaks, strict=True)]
        print(
            f"{name:12}{rates[0]:8.2f}{shares[0]:9.0%}{rates[1]:9.2f}{shares[1]:9.0%}"
            f"{rates[0] / rates[1]:6.2f}x"
        )


def _experiment(model: ModelConfig) -> ExperimentConfig:
    return ExperimentConfig(
        batch_size=_BATCH.value,
        model=model,
        data=DataConfig(max_tokens=_TOKENS.value),
        loss=dataclasses.replace(_LOSS, matching_group=_BATCH.value),
        optimizer=OptimizerConfig(warmup_steps=1),
    )


class JaxModel:
    """The training step and the embedding of capret_jax."""

    def __init__(self, model: ModelConfig):
        mesh = _one_device()
        config = _experiment(model)
        setup = StepSetup.create(config, mesh, np.ones(_CLASSES, int))
        self._step, self._state = make_step(setup), init_state(setup)
        self._embedder = Embedder(model, config.data.view, setup.config.compute, mesh)
        rng = np.random.default_rng(0)
        images, tokens = _BATCH.value, _TOKENS.value
        picture = rng.integers(0, 256, (images, _SIZE.value, _SIZE.value, 3), np.uint8)
        self._pictures = PictureBatch.without_captions(picture, np.ones((images, 1, 4), np.float32))
        batch = Batch(
            image=picture,
            token_ids=rng.integers(0, model.vocab_size, (images, tokens), np.int32),
            token_mask=np.ones((images, tokens), np.int32),
            identity=np.arange(images, dtype=np.int32),
            caption_id=np.arange(images, dtype=np.int32),
            box=np.full((images, 4), 0.5, np.float32),
            valid=np.ones(images, bool),
        )
        self._batch = to_global(mesh, batch)

    def embed(self):
        """Embeds one batch."""
        self._embedder.embed(self._state.params["model"], self._pictures)

    def train(self):
        """Takes one training step."""
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready(metrics)


class TorchModel(torch.nn.Module):
    """An equivalent model in PyTorch, with losses and optimizer."""

    def __init__(self, config):
        super().__init__()
        width, out = config.vision_width, config.embed_dim
        self.vision = BeitModel(
            BeitConfig(
                image_size=_SIZE.value,
                use_relative_position_bias=True,
                use_absolute_position_embeddings=False,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                drop_path_rate=0.0,
            )
        )
        bert = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        layers = config.text_layers, config.fusion_layers
        self.text = BertModel(BertConfig(num_hidden_layers=layers[0], **bert), False)
        fusion = BertConfig(
            num_hidden_layers=layers[1], is_decoder=True, add_cross_attention=True, **bert
        )
        self.fusion = BertModel(fusion, False)
        self.vision_proj = torch.nn.Linear(width, out)
        self.text_proj = torch.nn.Linear(width, out)
        self.match = _head(width, 2)
        self.box = _head(width, 4)
        self.classes = torch.nn.Parameter(torch.randn(_CLASSES, out))
        self._optimizer = torch.optim.AdamW(self.parameters(), lr=1e-5, fused=True)
        images = _BATCH.value
        self._image = torch.randn(images, 3, _SIZE.value, _SIZE.value)
        self._ids = torch.randint(0, config.vocab_size, (images, _TOKENS.value))
        self._mask = torch.ones(images, _TOKENS.value)

    def embed(self):
        """Embeds one batch."""
        with torch.no_grad():
            self._image_features(self._states())

    def train(self, mode: bool | None = None):
        """Takes one training step; with a mode, sets it as `torch.nn.Module.train` does."""
        if mode is not None:
            return super().train(mode)
        self._optimizer.zero_grad()
        self._loss().backward()
        self._optimizer.step()
        return self

    def _states(self):
        return self.vision(self._image).last_hidden_state

    def _image_features(self, states):
        pooled = states[:, 1:].mean(dim=1)
        return torch.nn.functional.normalize(self.vision_proj(pooled), dim=-1)

    def _fuse(self, text, image):
        fused = self.fusion(
            inputs_embeds=text,
            attention_mask=torch.ones(text.shape[:2]),
            encoder_hidden_states=image,
            use_cache=False,
        )
        return fused.last_hidden_state[:, 0]

    def _loss(self):
        functional = torch.nn.functional
        image = self._states()
        text = self.text(input_ids=self._ids, attention_mask=self._mask).last_hidden_state
        features = self._image_features(image)
        words = functional.normalize(self.text_proj(text[:, 0]), dim=-1)
        rows = torch.arange(len(features))
        similarity = features @ words.T / 0.07
        loss = functional.cross_entropy(similarity, rows)
        loss = loss + functional.cross_entropy(similarity.T, rows)
        pairs = self._fuse(
            torch.cat([text, text, text.roll(1, 0)]), torch.cat([image, image.roll(1, 0), image])
        )
        matching = torch.cat(
            [torch.ones_like(rows), torch.zeros_like(rows), torch.zeros_like(rows)]
        )
        loss = loss + functional.cross_entropy(self.match(pairs), matching)
        loss = loss + (self.box(pairs[: len(rows)]).sigmoid() - 0.5).abs().mean()
        cosine = features @ functional.normalize(self.classes, dim=-1).T
        return loss + functional.cross_entropy(30 * cosine, rows)


def _one_device() -> Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def _head(width: int, outputs: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(width, 2 * width),
        torch.nn.LayerNorm(2 * width),
        torch.nn.GELU(),
        torch.nn.Linear(2 * width, outputs),
    )


def _torch_peak(size: int = 2048) -> float:
    x = torch.randn(size, size)
    (seconds,) = _fastest([lambda: x @ x])
    return 2 * size**3 / seconds


def _fastest(calls: list[Callable[[], object]]) -> list[float]:
    """Returns the seconds of each function's fastest call, after one to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + _ROUNDS.value):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [min(seconds[1:]) for seconds in times]


if __name__ == "__main__":
    app.run(main)
