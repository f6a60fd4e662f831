"""Builds an index of a shop's pictures: `capret_jax.commands.build_index`.

python tools/build_index.py --model=runs/demo --source=products.csv --out=runs/shop
"""

from capret_jax.commands.build_index import cli

if __name__ == "__main__":
    cli()
