"""Collects captions by conversation: `capret_jax.commands.collect_captions`.

python tools/collect_captions.py --limit=1000 --out=captions.jsonl
"""

from capret_jax.commands.collect_captions import cli

if __name__ == "__main__":
    cli()
