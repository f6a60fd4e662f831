"""Folders of converted models."""

import gc
import json

import jax
import numpy as np
import pytest

from capret_jax.checkpoints.conversion import from_reference
from capret_jax.checkpoints.converted import (
    is_converted,
    load_params,
    load_retained,
    on_one_device,
    read_card,
    save_converted,
)
from capret_jax.checkpoints.state_dict import read_state_dict
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import abstract_model
from tests.conftest import DATA

# Orbax leaves the errors of its reading coroutines to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def _no_errors_for_later_modules():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def converted():
    return from_reference(read_state_dict(DATA / "x2vlm_tiny_caption.th"))


@pytest.fixture
def folder(converted, tmp_path):
    save_converted(tmp_path / "sub" / "model", converted)
    return tmp_path / "sub" / "model"


def test_a_saved_model_is_loaded_again(folder, converted):
    card = read_card(folder)
    assert (card.config, card.kind) == (converted.config, "caption_mlm")
    assert card.fresh == list(converted.report.missing.values())
    params = load_params(folder, on_one_device(abstract_model(card.config)[1]))
    jax.tree.map(np.testing.assert_array_equal, params, converted.params)
    retained = load_retained(folder)
    np.testing.assert_array_equal(
        retained["crit_mask_lm_smoothed.one_hot"],
        converted.retained["crit_mask_lm_smoothed.one_hot"],
    )
    report = json.loads((folder / "report.json").read_text())
    assert report["kind"] == "caption_mlm" and len(report["missing"]) == 17


def test_the_prompt_is_that_of_published_captioning_files(folder, converted, tmp_path):
    assert read_card(folder).prompt == "a picture of"
    content = json.loads((folder / "model.json").read_text())
    # Folders of versions without a prompt hold published files.
    del content["prompt"]
    for kind, prompt in (("caption_mlm", "a picture of"), ("pretrain", ""), ("vqa", "")):
        (folder / "model.json").write_text(json.dumps(content | {"kind": kind}))
        assert read_card(folder).prompt == prompt
    for prompt in ("a photo of", ""):
        save_converted(tmp_path / "own", converted, overwrite=True, prompt=prompt)
        assert read_card(tmp_path / "own").prompt == prompt


def test_no_temporary_folder_remains(folder):
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_is_replaced_only_on_request(folder, converted):
    with pytest.raises(InputError, match="exists; add --overwrite"):
        save_converted(folder, converted)
    (folder / "report.json").write_text("{}")
    save_converted(folder, converted, overwrite=True)
    assert json.loads((folder / "report.json").read_text())["kind"] == "caption_mlm"


def test_folders_with_other_files_are_never_replaced(tmp_path, converted):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds other things"):
        save_converted(tmp_path / "thesis", converted, overwrite=True)
    assert not is_converted(tmp_path / "thesis")
    save_converted(tmp_path / "mixed", converted)
    (tmp_path / "mixed" / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds other things"):
        save_converted(tmp_path / "mixed", converted, overwrite=True)


def test_a_damaged_folder_is_refused(folder, converted):
    (folder / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.json is no model config"):
        read_card(folder)
    abstract = on_one_device(abstract_model(converted.config)[1])
    with pytest.raises(InputError, match="params cannot be read"):
        load_params(folder.parent, abstract)
    (folder / "params" / "state" / "_METADATA").write_text("{")
    with pytest.raises(InputError, match="params cannot be read"):
        load_params(folder, abstract)


def array_files(folder):
    """Returns the files that hold arrays, and not their names and shapes."""
    return [path for path in sorted((folder / "params").rglob("d/*")) if path.is_file()]


@pytest.mark.parametrize("place", [0.2, 0.4, 0.6, 0.8])
def test_a_flipped_bit_is_never_another_model(folder, converted, place):
    abstract = on_one_device(abstract_model(converted.config)[1])
    for path in array_files(folder):
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read|is damaged: convert the file again"):
        load_params(folder, abstract)


def test_a_model_of_an_older_version_has_no_checksum(folder, converted):
    card = json.loads((folder / "model.json").read_text())
    del card["checksum"]
    (folder / "model.json").write_text(json.dumps(card))
    load_params(folder, on_one_device(abstract_model(converted.config)[1]))
