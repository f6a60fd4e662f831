"""Contrasts, conclusion, plot and audit, on synthetic results."""

import dataclasses

import numpy as np
import pytest

from capret_jax.ablation.audit import near_duplicates, shared_identities
from capret_jax.ablation.conclusions import (
    best_captions,
    condition_rows,
    condition_tables,
    write_conclusion,
)
from capret_jax.ablation.contrasts import contrasts_of
from capret_jax.ablation.forest_plot import forest_plot
from capret_jax.ablation.results import Arm, ResultTable, summarize_arms
from capret_jax.data.schema import LEVELS

SEEDS, QUERIES = 3, 120
EITHER = ("good", "bad")
READ_BY = ("good", "box", "fine_tuned")
# Effect of each arm on the average precision.
EFFECTS = {"none": 0.0, "good": 0.2, "bad": -0.2, "box": 0.0, "zero_shot": 0.0, "fine_tuned": 0.1}


@pytest.fixture(scope="module")
def table() -> ResultTable:
    rng = np.random.default_rng(0)
    difficulty = rng.uniform(0.3, 0.6, QUERIES)
    arms = [
        Arm(captions, objects, stage, "image", "none")
        for captions in ("none", "good", "bad")
        for objects in ("none", "box")
        for stage in ("zero_shot", "fine_tuned")
    ]
    arms.append(Arm(*READ_BY, "joined", "oracle"))
    precision = {
        arm: difficulty
        + sum(EFFECTS[name] for name in arm[:3])
        + rng.normal(0, 0.1, (SEEDS, QUERIES))
        for arm in arms
    }
    precision[arms[-1]] += 0.3
    queries = {name: np.arange(QUERIES) % 3 + 1 for name in ("category", *LEVELS)}
    first_rank = {arm: (values < 0.5).astype(int) for arm, values in precision.items()}
    return ResultTable(precision, first_rank, queries, np.arange(QUERIES) // 3)


@pytest.fixture(scope="module")
def contrasts(table):
    return contrasts_of(table, READ_BY)


def test_verdicts_match_the_true_effects(contrasts):
    for contrast in filter(lambda contrast: contrast.family, contrasts):
        expected = {"good": "helps", "bad": "hurts"}.get(contrast.name, "no difference shown")
        if contrast.kind in ("stage", "embedding"):
            expected = "helps"
        assert contrast.verdict == expected, contrast
    # Simple effects after fine-tuning are secondary.
    secondary = {contrast.verdict for contrast in contrasts if not contrast.family}
    assert secondary == {"may help", "may hurt"}
    kinds = [contrast.kind for contrast in contrasts]
    # Two captions arms: for each of two objects in two stages, and their means after fine-tuning.
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "captions": 10,
        "objects": 3,
        "stage": 1,
        "embedding": 1,
    }


def test_differences_are_paired(table, contrasts):
    good = next(c for c in contrasts if c.name == "good" and c.where == "fine_tuned, objects box")
    arm, other = (Arm(name, "box", "fine_tuned", "image", "none") for name in ("good", "none"))
    values = table.precision[arm] - table.precision[other]
    assert good.difference.mean == pytest.approx(values.mean())
    assert good.by_seed == pytest.approx(values.mean(axis=1))
    primary = next(c for c in contrasts if c.name == "good" and c.where.endswith("over objects"))
    assert (
        primary.family.low < primary.difference.low < primary.difference.high < primary.family.high
    )


def test_the_conclusion_lists_each_primary_contrast_with_its_interval(contrasts):
    sentences = write_conclusion(contrasts, QUERIES, SEEDS)
    tuned = next(
        text for text in sentences if text.startswith("Captions against none (fine_tuned, m")
    )
    assert "good: helps (+19.5 points" in tuned and "bad: hurts (-" in tuned
    assert not any("fine_tuned, objects box)" in text for text in sentences)
    labels = [f"{name} (objects {objects})" for objects in ("none", "box") for name in EITHER]
    good, bad = (" and ".join(labels[i::2]) for i in (0, 1))
    assert sentences[0] == (
        f"Does language help? in zero_shot, {good} help, and {bad} hurt; in fine_tuned, good help, "
        "and bad hurt."
    )
    assert f"{QUERIES} queries, seeds: {SEEDS}, contrasts: 11" in sentences[-3]
    assert write_conclusion(contrasts, QUERIES, 1)[-1].startswith("One seed")


def test_differences_by_condition_match_the_true_effects(table, contrasts):
    best = best_captions(contrasts, "fine_tuned")
    assert best.name == "good"
    rows = condition_rows(table, [best, contrasts[-1]])
    assert len(rows) == 3 * (1 + len(LEVELS))
    for row in rows:
        assert row["queries"] == QUERIES // 3
        means = [each["mean"] for each in row["differences"]]
        assert means == pytest.approx([0.2, 0.3], abs=0.05)


def test_each_stage_and_the_embeddings_have_a_table_of_conditions(table, contrasts):
    found = {group["name"]: group["contrasts"] for group in condition_tables(table, contrasts)}
    assert found == {
        "zero_shot": [
            "good - none (objects none)",
            "bad - none (objects none)",
            "good - none (objects box)",
            "bad - none (objects box)",
            "box - none (captions none)",
            "box - none",
        ],
        "fine_tuned": ["good - none", "bad - none", "box - none"],
        "embedding": ["joined, oracle captions - image"],
    }


def test_conditions_with_few_pairs_have_no_interval(table, contrasts):
    rare = {**table.queries, "category": np.where(table.clusters < 4, 1, 2)}
    rows = condition_rows(dataclasses.replace(table, queries=rare), contrasts[:1])
    few, many = (row for row in rows if row["condition"] == "category")
    assert few["pairs"] == 4 and few["differences"][0]["low"] is None
    assert many["differences"][0]["low"] < many["differences"][0]["mean"]


def test_arms_have_means_and_intervals(table):
    rows = summarize_arms(table)
    assert len(rows) == len(table.precision)
    for row, (arm, values) in zip(rows, table.precision.items(), strict=True):
        assert row["captions"] == arm.captions
        assert row["mAP"]["mean"] == pytest.approx(min(values.mean(), 1.0))
        assert row["mAP"]["low"] <= row["mAP"]["mean"] <= row["mAP"]["high"] <= 1
        assert row["top_1"] == pytest.approx((table.first_rank[arm] == 0).mean())


def test_the_plot_places_means_inside_their_intervals(contrasts):
    plot = forest_plot(contrasts)
    primary = [contrast for contrast in contrasts if contrast.family]
    for row, contrast in zip(plot.rows, primary, strict=True):
        assert row.low < row.mean < row.high
        assert (row.mean > plot.zero) == (contrast.difference.mean > 0)
        assert row.y < plot.height


def test_near_duplicates_differ_in_few_bits():
    rng = np.random.default_rng(0)
    some = rng.integers(0, 2**63, (300, 2)).astype(np.uint64)
    others = some[[7, 280]] ^ np.array([[0b101, 1 << 60], [0, 0]], np.uint64)
    np.testing.assert_array_equal(near_duplicates(some, others, bits=3), [[7, 0], [280, 1]])
    np.testing.assert_array_equal(near_duplicates(some, others, bits=2), [[280, 1]])


def test_the_splits_share_no_identity(splits):
    from capret_jax.datasets import Dataset

    assert shared_identities(Dataset(splits["train"], splits["validation"], None)) == 0
    same = Dataset(splits["train"], splits["train"], None)
    assert shared_identities(same) == 12
