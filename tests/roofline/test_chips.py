"""The table of chips, and the descriptions of GPUs that XLA compiles for."""

import re

import pytest

from capret_jax.roofline.chips import CHIPS, GPUS


@pytest.mark.parametrize("kind", CHIPS)
def test_figures_are_of_the_right_magnitude(kind):
    chip = CHIPS[kind]
    assert 10e9 < chip.hbm < 200e9
    assert 1e14 < chip.flops < 1e15
    # Links are slower than memory, memory too slow for a product of two operands a byte.
    assert chip.link_bandwidth < chip.hbm_bandwidth < chip.flops / 100
    assert 0.5 < chip.usable < 1


@pytest.mark.parametrize("name", GPUS)
def test_a_target_has_the_figures_of_the_table(name):
    gpu = GPUS[name]
    text = gpu.target_config()
    assert f"device_memory_size: {CHIPS[gpu.kind].hbm}\n" in text
    assert f'device_description_str: "{gpu.kind}"' in text
    # A multiprocessor's peak: its float32 units, two operations each, at the boost clock.
    float32 = 2 * gpu.fpus * gpu.multiprocessors * gpu.clock * 1e9
    assert float32 == pytest.approx({"a100": 19.5e12}.get(name, 67e12), rel=0.01)
    assert text.count("{") == text.count("}")
    assert not re.search(r": *$", text, re.MULTILINE)


def test_hosts_are_as_fast_as_their_network():
    chip = CHIPS[GPUS["h100"].kind]
    assert chip.on_hosts(1, 8) == chip
    assert chip.on_hosts(2, 8).link_bandwidth == 8 * 50e9
    assert chip.on_hosts(2, 1).link_bandwidth == 50e9
    tpu = CHIPS["TPU v5 lite"]
    assert tpu.on_hosts(4, 4) == tpu
