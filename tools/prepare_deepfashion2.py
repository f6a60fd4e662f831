"""Prepares a raw DeepFashion2 folder: `capret_jax.commands.prepare_deepfashion2`.

python tools/prepare_deepfashion2.py --source_dir=DeepFashion2 --out_dir=runs/data
"""

from capret_jax.commands.prepare_deepfashion2 import cli

if __name__ == "__main__":
    cli()
