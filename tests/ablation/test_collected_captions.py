"""An ablation with collected captions and an embedding that reads them, on the mini dataset."""

import json
import re

import pytest

from capret_jax.ablation import caption_arms
from capret_jax.ablation import run as ablation_run
from capret_jax.ablation.grid import Grid
from capret_jax.ablation.report import write_results
from capret_jax.ablation.run import run_grid
from capret_jax.datasets import open_dataset
from capret_jax.errors import InputError

pytestmark = pytest.mark.slow

ARMS = {
    "captions": ("none", "conversation"),
    "objects": ("none",),
    "stages": ("zero_shot", "fine_tuned"),
    "embeddings": ("image", "joined"),
    "seeds": (0,),
}


@pytest.fixture(scope="module")
def finished(small_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ablation")
    grid = Grid(small_config, workdir, ARMS)
    run_grid(grid, workdir, keep_models=False)
    dataset = open_dataset(grid.config_of(grid.evaluations()[0]).data)
    return grid, workdir, write_results(grid, dataset, workdir, small_config.read_by)


def test_the_report_covers_all_arms(finished):
    _, workdir, results = finished
    # Two captions x two stages, and one embedding with three caption sources.
    assert len(results["arms"]) == 4 + 3
    assert all(len(arm["mAP_by_seed"]) == 1 for arm in results["arms"])
    assert results["audit"]["shared_identities"] == 0
    page = (workdir / "report.html").read_text()
    for sentence in results["conclusion"]:
        assert all(part in page for part in re.split(" - |; ", sentence.rstrip(".")))
    assert page.count("<circle") == sum(1 for each in results["contrasts"] if each["family"])
    assert (workdir / "report.md").read_text().count("| conversation |") >= 4


def test_the_audit_lists_the_information_in_queries_captions(finished):
    sources = finished[2]["audit"]["query_captions"]
    assert sources["image, none"] == sources["joined, none"] == "nothing: it is empty"
    assert sources["joined, generated"].startswith("answers of X2-VLM to script")
    assert sources["joined, oracle"] == (
        "the annotations: category, sleeve, colour, pattern, print, neckline"
    )


def test_regions_with_condensed_captions(finished, small_config, serve, tmp_path):
    """Arms that are not run by default."""
    _, workdir, _ = finished
    # The first words of the first caption.
    server = serve(lambda prompt, number: " ".join(prompt.split("\n- ")[1].split()[:3]))
    config = small_config.copy_and_resolve_references()
    config.experiment.init_from = str(workdir / "pretrained")
    config.collected.ic3.questioner = server.url
    arms = {"captions": ("ic3",), "objects": ("regions",), "stages": ("fine_tuned",)}
    grid = Grid(config, tmp_path, {**arms, "embeddings": ("image",), "seeds": (0,)})
    run_grid(grid, tmp_path, keep_models=False)
    metrics = json.loads((tmp_path / grid.evaluations()[0].folder / "metrics.json").read_text())
    assert metrics["view"] == "region"
    summary = json.loads((tmp_path / "captions" / "ic3.json").read_text())
    assert summary["calls"] >= 1 and summary["prompt_tokens"] >= 100
    with pytest.raises(InputError, match="no captions of ic3"):
        server.reply = lambda prompt, number: 400
        file = grid.captions_file("ic3")
        file.with_suffix(".json").unlink()
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
        journal = file.with_name(file.name + ".journal")
        journal.write_text(journal.read_text().splitlines(keepends=True)[0])
        run_grid(grid, tmp_path, keep_models=False)


def test_captions_and_results_of_another_initial_model_are_refused(finished, monkeypatch):
    grid, workdir, _ = finished
    monkeypatch.setattr(ablation_run, "model_digest", lambda folder: "another")
    with pytest.raises(InputError, match="was collected with model=.*'another'"):
        run_grid(grid, workdir, keep_models=False)
    monkeypatch.setattr(caption_arms, "_check_settings", lambda *_: None)
    with pytest.raises(InputError, match="started from another model"):
        run_grid(grid, workdir, keep_models=False)


def test_the_settings_of_an_earlier_version_are_read(finished, monkeypatch, tmp_path):
    """They were called `how`."""
    grid, _, _ = finished
    [arm, *_] = grid.collected
    summary = json.loads(caption_arms._summary_path(grid, arm).read_text())
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"how": summary["settings"]}))
    monkeypatch.setattr(caption_arms, "_summary_path", lambda *_: old)
    caption_arms._check_settings(grid, arm, summary["settings"])
    with pytest.raises(InputError, match="was collected with limit="):
        caption_arms._check_settings(grid, arm, summary["settings"] | {"limit": 10**6})


def test_captions_of_other_settings_are_refused(finished, small_config):
    _, workdir, _ = finished
    other = small_config.copy_and_resolve_references()
    other.collected.conversation.dialogue = {"max_turns": 2}
    with pytest.raises(InputError, match=r"collected with max_turns=8, .*config\.collected\.conv"):
        run_grid(Grid(other, workdir, ARMS), workdir, keep_models=False)


def test_results_of_other_captions_are_refused(finished, small_config):
    grid, workdir, _ = finished
    file = grid.captions_file("conversation")
    captions = file.read_text()
    file.write_text(captions.replace("top", "cap"))
    try:
        with pytest.raises(InputError, match=r"conversation\.jsonl was another"):
            run_grid(Grid(small_config, workdir, ARMS), workdir, keep_models=False)
    finally:
        file.write_text(captions)
