"""The converter's command line, there and back."""

import importlib.util
import json
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from absl.testing import flagsaver

from capret_jax.checkpoints.loading import load_model
from capret_jax.checkpoints.state_dict import read_state_dict, write_state_dict
from capret_jax.config import SIZES
from capret_jax.errors import InputError
from tests.checkpoints.files import beit_file, bert_file
from tests.conftest import DATA

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "convert_torch_ckpt.py"


@pytest.fixture(scope="module")
def tool():
    """The program, called as its command line would be."""
    spec = importlib.util.spec_from_file_location("convert_torch_ckpt", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(source, target, **flags):
        from absl import flags as absl_flags

        absl_flags.FLAGS.mark_as_parsed()
        with flagsaver.flagsaver(**flags):
            module.main(["convert", str(source), str(target)])

    return call


@pytest.mark.parametrize("file_format", ["torch", "safetensors"])
@pytest.mark.parametrize("kind", ["pretrain", "vqa", "caption"])
def test_there_and_back_is_exact(tool, kind, file_format, tmp_path):
    source = DATA / f"x2vlm_tiny_{kind}.th"
    tool(source, tmp_path / "dir")
    tool(tmp_path / "dir", tmp_path / "back", to=file_format)
    state, back = read_state_dict(source), read_state_dict(tmp_path / "back")
    assert back.keys() == state.keys()
    for name, array in state.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_the_report_is_printed_and_written(tool, tmp_path, capsys):
    state = read_state_dict(DATA / "x2vlm_tiny_vqa.th")
    half = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in state.items()}
    write_state_dict(tmp_path / "half.safetensors", half, "safetensors")
    tool(tmp_path / "half.safetensors", tmp_path / "dir", image_size=96)
    printed = capsys.readouterr().out
    assert "vqa, tiny, 96 px" in printed
    assert "204 tensors" in printed
    assert "initialised fresh: bbox_head, itm_head" in printed
    assert "float16 were converted to float32 exactly" in printed
    assert "interpolated from 64 to 96 pixels" in printed
    report = json.loads((tmp_path / "dir" / "report.json").read_text())
    assert report["used"]["vision_encoder.cls_token"] == ["vision/cls_token"]
    assert report["ignored"]["text_encoder.embeddings.position_ids"] == "buffer, computed anew"
    assert report["missing"]["temp"] == "temperature"
    assert load_model(tmp_path / "dir").config.image_size == 96


def test_beit_and_bert_become_a_start(tool, tmp_path, capsys):
    write_state_dict(tmp_path / "beit.pth", beit_file(SIZES["tiny"], shared=False), "torch")
    write_state_dict(tmp_path / "bert.bin", bert_file(SIZES["tiny"], layers=2), "torch")
    tool(tmp_path / "beit.pth", tmp_path / "dir", bert=str(tmp_path / "bert.bin"))
    assert "beit_bert, tiny, 64 px" in capsys.readouterr().out
    model = load_model(tmp_path / "dir")
    assert model.encode_image(np.zeros((1, 64, 64, 3), np.float32)).shape == (1, 17, 64)
    with pytest.raises(InputError, match="nothing to send home"):
        tool(tmp_path / "dir", tmp_path / "back.th", to="torch")


def test_what_exists_is_replaced_only_on_request(tool, tmp_path):
    source = DATA / "x2vlm_tiny_pretrain.th"
    tool(source, tmp_path / "dir")
    with pytest.raises(InputError, match="dir exists; add --overwrite"):
        tool(source, tmp_path / "dir")
    tool(source, tmp_path / "dir", overwrite=True, image_size=32)
    tool(tmp_path / "dir", tmp_path / "back.th", to="torch", kind="retrieval")
    with pytest.raises(InputError, match=r"back\.th exists; add --overwrite"):
        tool(tmp_path / "dir", tmp_path / "back.th", to="torch")
    tool(tmp_path / "back.th", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "report.json").read_text())["kind"] == "retrieval"


def test_random_heads_do_not_go_home(tool, tmp_path):
    tool(DATA / "x2vlm_tiny_vqa.th", tmp_path / "dir")
    with pytest.raises(InputError, match="has bbox_head, which this model was never given"):
        tool(tmp_path / "dir", tmp_path / "back.th", to="torch", kind="grounding")
    assert not (tmp_path / "back.th").exists()
    for flags in ({"to": "safetensors"}, {"to": "torch"}):
        with pytest.raises(InputError, match="cannot be written"):
            tool(tmp_path / "dir", tmp_path / "absent" / "back", **flags)


def test_mistakes_are_one_line_and_exit_code_two(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.th", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"model": print}))
    for arguments, message in (
        (["evil.th", "out"], "names builtins.print"),
        (["evil.th", "out", "--image_size=100"], "image_size=100: must be a positive multiple"),
        (["evil.th"], "expected IN and OUT"),
    ):
        done = subprocess.run(
            [sys.executable, str(TOOL), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert not (tmp_path / "out").exists()
