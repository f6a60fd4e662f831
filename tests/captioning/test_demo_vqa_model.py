"""The small VQA model that answers when no model is named."""

import pytest

from capret_jax.captioning import demo_vqa_model
from capret_jax.errors import InputError


def test_package_without_the_repository_names_the_flag(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_vqa_model, "FOLDER", tmp_path / "answerer")
    monkeypatch.setattr(demo_vqa_model, "_CONFIG", tmp_path / "configs" / "demo_pretrain.py")
    with pytest.raises(InputError, match="set --model"):
        demo_vqa_model.ensure_demo_vqa_model()
    assert not list(tmp_path.iterdir())


def test_trained_model_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_vqa_model, "FOLDER", tmp_path)
    (tmp_path / "trained").touch()
    assert demo_vqa_model.ensure_demo_vqa_model() == str(tmp_path)
