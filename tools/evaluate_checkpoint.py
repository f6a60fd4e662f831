"""Evaluates a checkpoint on a task of X2-VLM: `capret_jax.commands.evaluate_checkpoint`.

python tools/evaluate_checkpoint.py DIR --task=retrieval --data=coco_test.json --images=coco
"""

from capret_jax.commands.evaluate_checkpoint import cli

if __name__ == "__main__":
    cli()
