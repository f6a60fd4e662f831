"""Converts X2-VLM's PyTorch checkpoints to JAX and back: `capret_jax.commands.convert_torch_ckpt`.

python tools/convert_torch_ckpt.py IN.th OUT_DIR
"""

from capret_jax.commands.convert_torch_ckpt import cli

if __name__ == "__main__":
    cli()
