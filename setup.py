"""Package metadata. Each requirement is a range that was tried, with its reason."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "capret_jax" / "__init__.py").read_text()
).group(1)

REQUIREMENTS = [
    # 0.10 made mesh axes Explicit by default and jax.shard_map public; 0.10.2 is the last for 3.11.
    "jax>=0.10.0,<0.11",
    # nnx.List and pure-dict merge, which models/ relies on, settled in 0.12.
    "flax>=0.12.6,<0.13",
    "optax>=0.2.6,<0.3",
    # The v1 API is still under `experimental` and moves between minor versions.
    "orbax-checkpoint>=0.12.8,<0.13",
    # Iterators became Orbax v1 checkpointables in 0.2.16.
    "grain>=0.2.16,<0.3",
    # Reads and writes ArrayRecord without TensorFlow since 4.9.7.
    "tensorflow-datasets>=4.9.10,<5",
    "array-record>=0.8.3,<0.9",
    # TFDS's paths; it pulls etils in itself, but we import it too.
    "etils>=1.12",
    # 1.4 dropped TensorFlow from ScaNN's requirements.
    "scann>=1.4.2,<2",
    "transformers>=5.0,<6",
    "tokenizers>=0.22",
    # 0.8 reads all tensors at once without mapping the file into memory.
    "safetensors>=0.8,<0.9",
    # bfloat16 for NumPy; JAX brings it, but we import it too.
    "ml-dtypes>=0.5",
    # JPEG bytes of the synthetic dataset depend on the libjpeg that Pillow bundles.
    "pillow>=12,<14",
    # Decodes JPEG without Pillow's copies, at reduced scale too, and is strict about damage.
    "simplejpeg>=1.8,<2",
    # Resizes ten times as fast as Pillow; older ones want NumPy 1.
    "opencv-python-headless>=4.13,<6",
    "numpy>=2.0",
    "scipy>=1.14",
    "absl-py>=2.1",
    # Locks that the operating system frees when a process dies; timeouts in acquire since 3.12.
    "filelock>=3.12",
    "ml-collections>=1.1,<2",
    "jinja2>=3.1",
    "tensorboardX>=2.6.4,<3",
    "tqdm>=4.66",
    # COCO's own average precision; 2.0.8 and later are built for NumPy 2.
    "pycocotools>=2.0.8,<3",
    # Word stems, by which captions are compared with answers; Snowball's own, in Python.
    "snowballstemmer>=2.2,<4",
]

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10.0,<0.11"],
    "cuda": ["jax[cuda13]>=0.10.0,<0.11"],
    # Paths gs:// and s3://: epath and staging through fsspec's file systems, whose versions follow
    # its own. Orbax asks google-cloud-storage how a bucket is laid out. Tried: 2026.10, 3.17.
    "buckets": ["gcsfs>=2026.9", "s3fs>=2026.9", "google-cloud-storage>=3,<4"],
    # 2.65 and later run with NumPy 2 and protobuf 6.
    "beam": ["apache-beam>=2.65,<3"],
    # Annotated parameters and lifespans, on Starlette's pure ASGI middleware.
    "serve": [
        "fastapi>=0.115,<1",
        "uvicorn>=0.32",
        "python-multipart>=0.0.18",  # earlier ones could be stalled by a crafted boundary
        "prometheus-client>=0.21",
    ],
    # Its client speaks to vLLM and llama.cpp alike; 3 and later through httpx2, whose streams
    # captioning/reply_limits.py bounds.
    "captioning": ["openai>=3,<4", "httpx2>=2.7,<3"],
    "export": ["pyarrow>=18", "faiss-cpu>=1.10,<2"],
    "dev": ["pytest>=9,<10", "ruff>=0.17,<0.18", "mypy>=2.1,<3", "scikit-learn>=1.5"],
}
# A real browser (Debian's Chromium) for the page, and a client for the API.
EXTRAS["dev"] += ["playwright>=1.49,<2", "httpx>=0.28"]
# Generates wrong inputs.
EXTRAS["dev"] += ["hypothesis>=6.100,<7"]
# Both cores; a notebook that is run as a test.
EXTRAS["dev"] += ["pytest-xdist>=3.6,<4", "nbclient>=0.10", "ipykernel>=6.29"]
EXTRAS["dev"] += EXTRAS["beam"] + EXTRAS["serve"] + EXTRAS["export"] + EXTRAS["captioning"]
# The tests of buckets speak the protocol with a local server.
EXTRAS["dev"] += EXTRAS["buckets"]

# Modules with a function `cli`. The scripts in tools/ run the same functions.
COMMANDS = {
    "capret-train": "capret_jax.main",
    "capret-convert": "capret_jax.commands.convert_torch_ckpt",
    "capret-prepare": "capret_jax.commands.prepare_deepfashion2",
    "capret-index": "capret_jax.commands.build_index",
    "capret-serve": "capret_jax.serve.app",
    "capret-score": "capret_jax.commands.score_deepfashion2",
    "capret-collect": "capret_jax.commands.collect_captions",
    "capret-ablate": "capret_jax.commands.run_ablation",
    "capret-plan": "capret_jax.commands.plan",
    "capret-evaluate": "capret_jax.commands.evaluate_checkpoint",
}

setuptools.setup(
    name="capret_jax",
    version=VERSION,
    description="Photo -> shop item retrieval with vision-language models, in JAX.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["capret_jax", "capret_jax.*"]),
    entry_points={
        "console_scripts": [f"{name} = {module}:cli" for name, module in COMMANDS.items()]
    },
    package_data={
        "capret_jax.ablation": ["report.html.jinja", "report.md.jinja"],
        "capret_jax.evaluation": ["report.html.jinja"],
        "capret_jax.serve": ["page.html", "docs.html.jinja"],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
