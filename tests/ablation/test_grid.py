"""The cells of an ablation: possible arms, overrides, and refused configurations."""

import pytest

from capret_jax.ablation.grid import Grid
from capret_jax.errors import InputError
from tests.ablation.conftest import shipped_config


@pytest.mark.parametrize("data", ["demo", "df2"])
def test_the_shipped_grid_is_possible(data, tmp_path):
    config = shipped_config(data)
    config.experiment.init_from = str(tmp_path)
    config.experiment.data.tokenizer = "bert-base-uncased"
    grid = Grid(config, tmp_path)
    arms = {name: {getattr(cell, name) for cell in grid.cells} for name in ("captions", "objects")}
    assert len(arms["captions"]) >= 3 and len(arms["objects"]) == 2
    assert len(grid.seeds) >= 3


@pytest.mark.parametrize("captions", ["category", "captioner", "true"])
@pytest.mark.parametrize("objects", ["box", "regions"])
def test_arms_that_are_not_run_by_default_are_possible(captions, objects, tmp_path):
    grid = Grid(shipped_config(), tmp_path, {"captions": (captions,), "objects": (objects,)})
    assert all(cell.objects == objects for cell in grid.cells)


@pytest.mark.parametrize(
    "subset, message",
    [
        ({"captions": ("haiku",)}, "captions has no arm 'haiku': there are captioner, category"),
        ({"embeddings": ("smell",)}, "embeddings has no arm 'smell'"),
        ({"seeds": (0, 1, 0)}, "--seeds names one twice: 0, 1, 0"),
        ({"objects": ("box", "box")}, "--objects names one twice"),
        (
            {"captions": ("none", "template"), "embeddings": ("image", "fusion")},
            "trained with conversation and box and fine_tuned .* alone",
        ),
        (
            {"captions": ("template",), "embeddings": ("fusion",)},
            "trained with conversation and box and fine_tuned .* alone",
        ),
    ],
)
def test_an_impossible_subset_is_refused(subset, message, tmp_path):
    with pytest.raises(InputError, match=message):
        Grid(shipped_config(), tmp_path, subset)


def test_arms_are_overridden_independently():
    config = shipped_config()
    config.captions.category.loss.itc = 9.0
    config.objects.box.loss.box_l1 = 9.0
    config.embeddings.joined.changes.data.captions.dropout = 0.9
    others = [arm.loss.itc for name, arm in config.captions.items() if name != "category"]
    assert 9.0 not in others and config.objects.regions.loss.box_l1 != 9.0
    assert config.embeddings.fusion.changes.data.captions.dropout == 0.3


def test_an_impossible_cell_is_refused_on_construction(tmp_path):
    config = shipped_config()
    config.captions.category.loss.itc = -1.0
    with pytest.raises(InputError, match=r"category-none-zero_shot.*: loss\.itc=-1\.0"):
        Grid(config, tmp_path)


@pytest.mark.parametrize(
    "group, name, old, value, new",
    [
        ("collected", "captioner", "looker", "", "vqa_model"),
        ("embeddings", "text", "said", ("oracle",), "captions"),
    ],
)
def test_an_old_key_is_refused_with_its_new_name(group, name, old, value, new, tmp_path):
    config = shipped_config()
    config[group][name][old] = value
    message = rf"config\.{group}\.{name}\.{old} has a new name: set config\.{group}\.{name}\.{new} "
    with pytest.raises(InputError, match=message):
        Grid(config, tmp_path)


def test_an_unknown_caption_source_is_refused(tmp_path):
    config = shipped_config()
    config.embeddings.text.captions = ("generated", "dreamt")
    with pytest.raises(InputError, match=r"config\.embeddings\.text\.captions has 'dreamt'"):
        Grid(config, tmp_path)
