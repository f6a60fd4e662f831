"""Serves a model and an index over HTTP: `capret_jax.serve.app`."""

from capret_jax.command_line import run
from capret_jax.serve.app import main


def cli() -> None:
    """Runs the command: the console script."""
    run(main)


if __name__ == "__main__":
    cli()
