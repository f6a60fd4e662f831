"""Seconds and memory of an evaluation of image-text retrieval, at COCO's size by default.

    python tools/bench_tasks.py --share=0.1

A random tiny model, pictures of random colours in files, and captions of random words. With a share
under 1, that part of the queries of each direction is re-ranked, and the seconds are of that part.
"""

import dataclasses
import pathlib
import random
import resource
import tempfile
import time

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from capret_jax.config import (
    SIZES,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LossConfig,
    MeshConfig,
    ReadConfig,
    TaskConfig,
)
from capret_jax.data.tokenizer import CaptionEncoder, build_vocabulary, load_tokenizer
from capret_jax.distributed.batch_share import BatchShare
from capret_jax.distributed.mesh import make_mesh
from capret_jax.evaluation.mesh_ranking import LabelledEmbeddings
from capret_jax.models.x2vlm import init_params
from capret_jax.tasks.checkpoint_run import CheckpointRun
from capret_jax.tasks.evaluators.encoded import RetrievalEncoder
from capret_jax.tasks.evaluators.matching import PairMatcher
from capret_jax.tasks.evaluators.retrieval import find_candidates
from capret_jax.tasks.examples import ImageCaptions
from capret_jax.tasks.readers import Examples

_IMAGES = flags.DEFINE_integer("images", 5000, "Number of pictures.", 1)
_CAPTIONS = flags.DEFINE_integer("captions", 5, "Captions of each picture.", 1)
_TOP_K = flags.DEFINE_integer("top_k", 256, "Candidates of each query.", 10)
_SHARE = flags.DEFINE_float("share", 1.0, "Part of the queries to re-rank.", 0.0, 1.0)
_DEVICES = flags.DEFINE_integer("devices", 2, "Number of CPU devices.", 1)
_CACHE_MB = flags.DEFINE_integer("cache_mb", 1024, "Memory for states; more go to files.", 1)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Precision of matrix products.")

_WORDS = [f"{a}{b}" for a in ("ba", "du", "ke", "li", "mo", "ra") for b in "abcdefgh"]
_BATCH = 128


def main(argv: list[str]) -> None:
    """Prints a line for each phase."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    with tempfile.TemporaryDirectory() as folder:
        run = _make_run(pathlib.Path(folder))
        _measure(run)


def _measure(run: CheckpointRun) -> None:
    rows = run.test.rows
    start = time.perf_counter()
    encoder, matcher = RetrievalEncoder(run), PairMatcher(run)
    texts = encoder.texts(run.params, [text for row in rows for text in row.captions])
    images = encoder.images(run.params)
    place = "memory" if images.states.in_memory else "a file"
    start = _report(f"encoding, vision tokens in {place}", start)
    owner = np.repeat(np.arange(len(rows)), _CAPTIONS.value)
    image_labels = LabelledEmbeddings(images.features, np.arange(len(rows)))
    text_labels = LabelledEmbeddings(texts.features, owner)
    by_image = find_candidates(run, image_labels, text_labels).rows
    by_text = find_candidates(run, text_labels, image_labels).rows
    start = _report(f"search, {by_image.size + by_text.size:,} candidates", start)
    part = [x[: max(round(_SHARE.value * len(x)), 1)] for x in (by_image, by_text)]
    match = matcher(run.params, (part[0], part[1]), images.states, texts.states)
    seconds = time.perf_counter() - start
    asked = sum(x.size for x in part)
    _report(
        f"re-ranking of {asked:,} candidates ({_SHARE.value:.0%} of the queries), {match.pairs:,} "
        f"distinct pairs, {seconds / match.pairs * 1e6:.1f} us each",
        start,
    )


def _report(phase: str, start: float) -> float:
    """Prints a phase's seconds and the memory so far; returns the time now."""
    now = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{phase}: {now - start:.1f} s; largest memory so far {memory:.2f} GB", flush=True)
    return now


def _make_run(folder: pathlib.Path) -> CheckpointRun:
    """Writes the pictures and a vocabulary, and makes the inputs of the evaluation."""
    drawn, rng = random.Random(0), np.random.default_rng(0)
    model = dataclasses.replace(SIZES["tiny"], dropout=0.0, drop_path=0.0)
    rows = []
    for number in range(_IMAGES.value):
        name = f"{number}.jpg"
        blocks = rng.integers(0, 256, (4, 4, 3), np.uint8)
        side = model.image_size // 4
        Image.fromarray(blocks.repeat(side, axis=0).repeat(side, axis=1)).save(folder / name)
        # COCO's captions have 8 to 14 words, most of them.
        texts = (drawn.choices(_WORDS, k=drawn.randint(8, 14)) for _ in range(_CAPTIONS.value))
        rows.append(ImageCaptions(name, number, tuple(map(" ".join, texts))))
    build_vocabulary(_WORDS, folder / "vocab.txt", model.vocab_size)
    task = TaskConfig(name="retrieval", test="none", images=str(folder), top_k=_TOP_K.value)
    config = ExperimentConfig(
        mode="evaluate",
        task=task,
        model=model,
        compute=ComputeConfig(_DTYPE.value),
        data=DataConfig(read=ReadConfig(threads=2)),
        loss=LossConfig(box_l1=0.0, box_giou=0.0, arcface=0.0),
        evaluation=EvaluationConfig(batch_size=_BATCH, cache_mb=_CACHE_MB.value),
    )
    mesh = make_mesh(MeshConfig())
    return CheckpointRun(
        config,
        mesh,
        BatchShare.of_mesh(mesh),
        CaptionEncoder(load_tokenizer(str(folder / "vocab.txt")), config.data.max_tokens),
        Examples(tuple(rows)),
        init_params(model, jax.random.key(0)),
    )


if __name__ == "__main__":
    app.run(main)
