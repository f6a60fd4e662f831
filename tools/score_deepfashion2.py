"""Scores a result file by the official rules: `capret_jax.commands.score_deepfashion2`.

python tools/score_deepfashion2.py RESULTS.json --query=Q.json --gallery=G.json
"""

from capret_jax.commands.score_deepfashion2 import cli

if __name__ == "__main__":
    cli()
