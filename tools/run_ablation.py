"""Runs an ablation and writes its report: `capret_jax.commands.run_ablation`.

python tools/run_ablation.py --config=configs/ablation.py --workdir=runs/ablation
"""

from capret_jax.commands.run_ablation import cli

if __name__ == "__main__":
    cli()
