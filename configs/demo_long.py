"""The demo with more of everything, for half an hour on two CPU cores: 96 pixels, a deeper vision
encoder, more steps, and a greater share of views that teach to find garments.

    python -m capret_jax.main --config=configs/demo_long.py --workdir=runs/demo_long
"""

from configs import demo


def get_config():
    """`configs/demo.py` with these changes."""
    config = demo.get_config()
    config.model.image_size = 96
    config.model.vision_depth = 4
    config.data.augment.wide = 0.6
    config.loop.steps = 9000
    return config
