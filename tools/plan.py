"""Plans a config's step on TPUs or GPUs that are not here: `capret_jax.commands.plan`.

python tools/plan.py --config=configs/df2_finetune.py --topology=v5e:4x4
"""

from capret_jax.commands.plan import cli

if __name__ == "__main__":
    cli()
