"""The command line of the converter, in both directions."""

import dataclasses
import json
import pickle
import re
import zipfile

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from capret_jax.checkpoints.conversion import Converted
from capret_jax.checkpoints.converted import save_converted
from capret_jax.checkpoints.loading import ModelFolder, load_model, open_model_tokenizer
from capret_jax.checkpoints.report import Report
from capret_jax.checkpoints.state_dict import read_state_dict, write_state_dict
from capret_jax.config import SIZES
from capret_jax.errors import InputError
from capret_jax.models.x2vlm import init_params
from tests.checkpoints.files import beit_file, bert_file
from tests.commands import in_process
from tests.conftest import DATA
from tests.small_model import SMALL_MODEL


def convert(*arguments: object, **flags: object) -> str:
    """Runs the command; returns its standard output.

    Raises:
        InputError: the command ended with exit code 2 and this message.
    """
    options = [f"--{name}={value}" for name, value in flags.items()]
    command = "capret_jax.commands.convert_torch_ckpt"
    code, stdout, stderr = in_process.call(command, *arguments, *options)
    if code == 2:
        raise InputError(stderr)
    assert code == 0, stderr
    return stdout


@pytest.mark.parametrize("file_format", ["torch", "safetensors"])
@pytest.mark.parametrize("kind", ["pretrain", "vqa", "caption"])
def test_conversion_and_export_are_exact(kind, file_format, tmp_path):
    source = DATA / f"x2vlm_tiny_{kind}.th"
    convert(source, tmp_path / "dir")
    convert(tmp_path / "dir", tmp_path / "exported", to=file_format)
    state, exported = read_state_dict(source), read_state_dict(tmp_path / "exported")
    assert exported.keys() == state.keys()
    for name, array in state.items():
        assert (exported[name].dtype, exported[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(exported[name], array, err_msg=name)


def test_the_report_is_printed_and_written(tmp_path):
    state = read_state_dict(DATA / "x2vlm_tiny_vqa.th")
    half = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in state.items()}
    write_state_dict(tmp_path / "half.safetensors", half, "safetensors")
    printed = convert(tmp_path / "half.safetensors", tmp_path / "dir", image_size=96)
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


def test_beit_and_bert_are_converted(tmp_path):
    write_state_dict(tmp_path / "beit.pth", beit_file(SIZES["tiny"], shared=False), "torch")
    write_state_dict(tmp_path / "bert.bin", bert_file(SIZES["tiny"], layers=2), "torch")
    printed = convert(tmp_path / "beit.pth", tmp_path / "dir", bert=tmp_path / "bert.bin")
    assert "beit_bert, tiny, 64 px" in printed
    model = load_model(tmp_path / "dir")
    assert model.encode_image(np.zeros((1, 64, 64, 3), np.float32)).shape == (1, 17, 64)
    with pytest.raises(InputError, match="nothing to export"):
        convert(tmp_path / "dir", tmp_path / "back.th", to="torch")


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory):
    """A converted model of no published size, with an answer decoder and frame positions."""
    config = dataclasses.replace(
        SMALL_MODEL, vision_width=32, vision_heads=2, text_heads=2, embed_dim=24, frames=2,
        decoder_layers=1, embedding="fusion",
    )  # fmt: skip
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    folder = tmp_path_factory.mktemp("odd") / "model"
    save_converted(folder, Converted(params, config, Report("pretrain", "custom", 32)))
    return folder, config


@pytest.mark.parametrize(
    ("kind", "file_format"),
    [("pretrain_stage2", "torch"), ("vqa", "safetensors"), ("retrieval", "torch")],
)
def test_exports_of_any_size_are_read_back(odd_model, kind, file_format, tmp_path):
    folder, config = odd_model
    convert(folder, tmp_path / "file", to=file_format, kind=kind)
    printed = convert(tmp_path / "file", tmp_path / "dir")
    assert f"{kind}, custom, 32 px" in printed
    (params, card), given = read_model(tmp_path / "dir"), read_model(folder)[0]
    layers = 1 if kind == "vqa" else 0
    assert card.config == dataclasses.replace(config, decoder_layers=layers)
    fresh = set(card.fresh)
    assert fresh and "fusion_proj/kernel" in fresh
    for path, value in params.items():
        if path not in fresh:
            np.testing.assert_array_equal(value, given[path], err_msg=path)
    convert(tmp_path / "dir", tmp_path / "again", to=file_format)
    states = [read_state_dict(tmp_path / name) for name in ("file", "again")]
    np.testing.assert_equal(states[1], states[0])


def test_a_file_of_no_published_size_needs_a_model_like_it(odd_model, tmp_path):
    folder, config = odd_model
    convert(folder, tmp_path / "file", to="torch")
    bare = tmp_path / "bare.safetensors"
    write_state_dict(bare, read_state_dict(tmp_path / "file"), "safetensors")
    with pytest.raises(InputError, match="width 32 is of no known size .*: name a .* --like=DIR"):
        convert(bare, tmp_path / "dir")
    convert(bare, tmp_path / "dir", like=folder)
    params, card = read_model(tmp_path / "dir")
    # A stage-1 file has no frame positions.
    assert card.config == dataclasses.replace(config, decoder_layers=0, frames=0)
    np.testing.assert_array_equal(
        params["text/embeddings/word/embedding"],
        read_model(folder)[0]["text/embeddings/word/embedding"],
    )
    write_state_dict(bare, read_state_dict(bare), "safetensors", {"text_heads": "many"})
    with pytest.raises(InputError, match="the shapes that the file says are of no model"):
        convert(bare, tmp_path / "other")


def read_model(folder):
    """Path -> parameter, and the card."""
    folder = ModelFolder(folder)
    return flatten_dict(folder.load_params(), sep="/"), folder.card


@pytest.mark.torch
def test_torch_reads_an_export_with_its_shapes(odd_model, tmp_path):
    torch = pytest.importorskip("torch")
    convert(odd_model[0], tmp_path / "file", to="torch")
    content = torch.load(tmp_path / "file", weights_only=True)
    assert content["capret_jax_model"] == dataclasses.asdict(odd_model[1])
    torch.save(content, tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "dir")


def test_absent_names_are_printed_and_reported(tmp_path):
    state = read_state_dict(DATA / "x2vlm_tiny_pretrain.th")
    bare = {name: array for name, array in state.items() if "position_i" not in name}
    write_state_dict(tmp_path / "bare.th", bare, "torch")
    printed = convert(tmp_path / "bare.th", tmp_path / "dir")
    assert "absent      4 tensors: 4 buffer, computed anew; nothing is lost" in printed
    report = json.loads((tmp_path / "dir" / "report.json").read_text())
    assert report["absent"].keys() == state.keys() - bare.keys()


def test_existing_files_are_replaced_only_on_request(tmp_path):
    source = DATA / "x2vlm_tiny_pretrain.th"
    convert(source, tmp_path / "dir")
    with pytest.raises(InputError, match="dir exists; add --overwrite"):
        convert(source, tmp_path / "dir")
    convert(source, tmp_path / "dir", overwrite=True, image_size=32)
    convert(tmp_path / "dir", tmp_path / "back.th", to="torch", kind="retrieval")
    with pytest.raises(InputError, match=r"back\.th exists; add --overwrite"):
        convert(tmp_path / "dir", tmp_path / "back.th", to="torch")
    convert(tmp_path / "back.th", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "report.json").read_text())["kind"] == "retrieval"


def test_random_heads_are_not_exported(tmp_path):
    convert(DATA / "x2vlm_tiny_vqa.th", tmp_path / "dir")
    with pytest.raises(InputError, match="has bbox_head, which have no trained values here"):
        convert(tmp_path / "dir", tmp_path / "back.th", to="torch", kind="grounding")
    assert not (tmp_path / "back.th").exists()
    for flags in ({"to": "safetensors"}, {"to": "torch"}):
        with pytest.raises(InputError, match="cannot be written"):
            convert(tmp_path / "dir", tmp_path / "absent" / "back", **flags)


def test_the_tokenizer_is_kept_beside_the_model(tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndress\n")
    source = DATA / "x2vlm_tiny_pretrain.th"
    convert(source, tmp_path / "with", tokenizer=tmp_path / "vocab.txt")
    folder = ModelFolder(tmp_path / "with")
    tokenizer = open_model_tokenizer(folder.setup(), folder.card.config)
    assert tokenizer.get_vocab()["dress"] == 5
    assert not capsys.readouterr().err

    convert(source, tmp_path / "without")
    assert ModelFolder(tmp_path / "without").setup().tokenizer == "bert-base-uncased"
    with pytest.raises(InputError, match="is no file: name the model's vocab.txt"):
        convert(source, tmp_path / "out", tokenizer=tmp_path / "missing.txt")
    (tmp_path / "large.txt").write_text("".join(f"word{i}\n" for i in range(40_000)))
    with pytest.raises(InputError, match="it is the tokenizer of another model"):
        convert(source, tmp_path / "out", tokenizer=tmp_path / "large.txt")
    assert not (tmp_path / "out").exists()


def test_the_prompt_of_a_captioning_file_can_be_named(tmp_path):
    source = DATA / "x2vlm_tiny_caption.th"
    convert(source, tmp_path / "own", prompt="")
    assert ModelFolder(tmp_path / "own").card.prompt == ""
    with pytest.raises(InputError, match="--prompt is of caption_mlm files, not of pretrain"):
        convert(DATA / "x2vlm_tiny_pretrain.th", tmp_path / "out", prompt="a photo of")
    with pytest.raises(
        InputError, match="neither --image_size, --bert, --like, --tokenizer nor --prompt"
    ):
        convert(tmp_path / "own", tmp_path / "back", to="torch", prompt="a photo of")


def test_errors_are_one_line_and_exit_code_two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "evil.th", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"model": print}))
    for arguments, message in (
        (["evil.th", "out"], "names builtins.print"),
        (["evil.th", "out", "--image_size=100"], "image_size=100: must be a positive multiple"),
        (["evil.th"], "expected IN and OUT"),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            convert(*arguments)
        assert str(error.value).count("\n") == 1
        assert not (tmp_path / "out").exists()
