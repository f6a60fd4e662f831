"""Retrieval of shop items from consumer photographs with vision-language models, in JAX."""

__version__ = "0.1.0"
__all__ = ["Searcher", "load_model"]


def __getattr__(name: str):
    # Imported on demand: JAX takes a second, and programs set environment variables before it.
    if name == "load_model":
        from capret_jax.checkpoints.loading import load_model

        return load_model
    if name == "Searcher":
        from capret_jax.serve.searcher import Searcher

        return Searcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
