"""The colour histogram baseline."""

import numpy as np

from capret_jax.evaluation.colour_histogram import histograms


def test_histograms_are_square_roots_of_fractions_with_unit_norm():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = (255, 0, 40)  # cell (7, 0, 1)
    histogram = histograms(image)[0]
    assert histogram[0] ** 2 == 0.75
    assert histogram[7 * 64 + 1] ** 2 == 0.25
    assert np.linalg.norm(histogram) == 1


def test_histograms_do_not_depend_on_the_order_of_pixels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 8, 8, 3), np.uint8)
    shuffled = rng.permutation(image.reshape(-1, 3)).reshape(image.shape)
    np.testing.assert_array_equal(histograms(image), histograms(shuffled))
