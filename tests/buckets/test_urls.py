"""Paths in buckets at every entrance: read there, or refused by name, and never a folder "gs:"."""

import dataclasses
import pathlib

import pytest
from absl import flags

from capret_jax.buckets.urls import check_no_url, url_scheme
from capret_jax.config import EmbeddingConfig, ExperimentConfig, from_config_dict, to_config_dict
from capret_jax.config.config_dict import BUCKET_KEYS
from capret_jax.errors import InputError
from tests.commands import in_process
from tests.commands.test_console_scripts import installed

URL = "gs://forbidden/some/where"
# Commands, with what each needs before it looks at paths.
REQUIRED = {
    "capret-train": ["--config=configs/demo.py", "--workdir=OUT"],
    "capret-prepare": ["--source_dir=IN", "--out_dir=OUT"],
    "capret-index": ["--model=IN", "--out=OUT"],
    "capret-serve": ["--model=IN"],
    "capret-score": ["--query=Q", "--gallery=G"],
    "capret-collect": ["--out=OUT"],
    "capret-evaluate": ["--task=vqa", "--data=D", "--images=I"],
    "capret-ablate": ["--config=configs/ablation.py", "--workdir=OUT"],
}
# Flags whose files are read from, or written to, a bucket.
SUPPORTED = {
    "capret-train": {"workdir"},
    "capret-index": {"model", "tokenizer"},
    "capret-serve": {"model", "index", "tokenizer"},
    "capret-score": {"query", "gallery"},
    "capret-collect": {"model"},
}
# Flags that are no paths.
NO_PATHS = {"coordinator_address", "runner", "language_model", "part", "prompt", "topology"}


def text_flags(command: str) -> list[str]:
    """Returns the flags of a command that take any text."""
    in_process.load(installed()[command])
    _, command_flags = in_process._LOADED[installed()[command]]
    kinds = (flags.ArgumentParser, flags.ListParser)
    return [f.name for f in command_flags if type(f.parser) in kinds]


@pytest.mark.parametrize("url", ["gs://b", "s3://b/c", "gs:/b", "GS://b", "az://b/c", "file:///b"])
def test_urls_of_buckets_are_refused_by_name(url):
    for value in (url, ["on/disk", url], (url,)):
        with pytest.raises(InputError, match=r"--out=\S+:/\S+ is in a bucket.*mount"):
            check_no_url("--out", value)


def test_the_config_file_is_on_a_disk():
    code, _, error = in_process.call("capret_jax.main", f"--config={URL}.py", "--workdir=OUT")
    assert (code, error.count("\n")) == (2, 1)
    assert f"--config={URL}.py is in a bucket" in error


@pytest.mark.parametrize(
    "path",
    ["a/b", "/gs:/b", "C:/b", "gs:b", "./gs://b", "transformers:/a", "http://b:8/v1", 3, None, ""],
)
def test_other_values_are_not(path):
    check_no_url("--out", path)
    if not str(path).startswith("http") and isinstance(path, str):
        assert not url_scheme(path)


def text_keys(values: dict, path: str = "config") -> list[str]:
    """Returns the keys of a config that take texts."""
    keys = []
    for name, value in values.items():
        if isinstance(value, dict):
            keys += text_keys(value, f"{path}.{name}")
        elif isinstance(value, str | tuple):
            keys.append(f"{path}.{name}")
    return keys


@pytest.mark.parametrize("key", text_keys(dataclasses.asdict(ExperimentConfig())))
def test_every_key_reads_buckets_or_refuses_them_by_name(key):
    values = to_config_dict(ExperimentConfig())
    with values.ignore_type():
        name = key.removeprefix("config.")
        old = ExperimentConfig()
        for part in name.split("."):
            old = getattr(old, part)
        values.update_from_flattened_dict({name: (URL,) if isinstance(old, tuple) else URL})
    if key in BUCKET_KEYS:
        with pytest.MonkeyPatch.context() as patch:
            # Other rules may refuse the combination, but not as a path.
            for kind in (ExperimentConfig, EmbeddingConfig):
                patch.setattr(kind, "__post_init__", lambda self: None)
            assert from_config_dict(values)
        return
    with pytest.raises(InputError, match=f"{key}={URL}"):
        from_config_dict(values)


@pytest.mark.parametrize("command", installed())
def test_every_flag_reads_buckets_or_refuses_them_by_name(command, bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(pathlib.Path(__file__).parents[2] / "configs")
    paths = [flag for flag in text_flags(command) if flag not in NO_PATHS]
    assert paths
    for flag in paths:
        given = [f"--{flag}={URL}"]
        code, _, error = in_process.call(
            installed()[command], *REQUIRED.get(command, []), *given, "IN", "OUT"
        )
        assert code == 2, error
        assert error.count("\n") == 1
        if flag not in SUPPORTED.get(command, ()):
            assert f"--{flag}={URL} is in a bucket" in error
        assert {path.name for path in tmp_path.iterdir()} == {"configs"}


@pytest.mark.parametrize(
    ("key", "read"), [("config.init_from", True), ("config.data.source_dir", False)]
)
def test_an_override_is_a_key_and_not_a_flag(key, read, bucket, tmp_path):
    code, _, error = in_process.call(
        "capret_jax.main", "--config=configs/demo.py", f"--workdir={tmp_path}", f"--{key}={URL}"
    )
    assert (code, error.count("\n")) == (2, 1)
    assert URL in error
    assert ("which this cannot read" in error) == (not read)
