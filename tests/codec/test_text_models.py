"""Tiny random text encoders of the real classes, with a tokenizer of a few words."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamstill.codec.text_models import TextModel, TextModelConfig
from streamstill.config import from_dict, to_dict
from tests.codec.tiny_models import PROMPTS, WORDS, clip_text, gemma, gemma_3, saved_text, t5, transformers, umt5

BUILDERS = {"clip_text_model": clip_text, "t5": t5, "umt5": umt5, "gemma2": gemma, "gemma3_text": gemma_3}
MASKED = [name for name in BUILDERS if not name.startswith("clip")]
TOKENS = 8
every = pytest.mark.parametrize("name", BUILDERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = saved_text(BUILDERS[name], tmp_path_factory.mktemp("text"))
        return made[name]

    return folder


def loaded(folder: Path, **given: Any) -> TextModel:
    return TextModel.from_pretrained(folder, **{"tokens": TOKENS, **given})


@every
def test_embeddings_have_a_fixed_length_and_the_models_width(name: str, folders: Callable[[str], Path]) -> None:
    model = loaded(folders(name))
    long = " ".join(WORDS[2:] * 3)
    text = model.encode([*PROMPTS, long])
    assert text.shape == (3, TOKENS, 16)
    assert (model.config.family, model.text_width, text.dtype) == (name, 16, torch.float32)


@every
def test_a_batch_equals_its_prompts_alone_and_repeats_itself(name: str, folders: Callable[[str], Path]) -> None:
    model = loaded(folders(name))
    together = model.encode(PROMPTS)
    torch.testing.assert_close(together, torch.cat([model.encode([prompt]) for prompt in PROMPTS]))
    assert torch.equal(model.encode(PROMPTS), together)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("name", MASKED)
def test_padding_is_at_the_end_and_zero_and_more_of_it_changes_nothing(
    name: str, folders: Callable[[str], Path]
) -> None:
    """The tokenizer on disk pads on the left, as those of language models do."""
    text = loaded(folders(name)).encode(PROMPTS[:1])[0]
    assert (text[3:] == 0).all()
    assert (text[:3].abs().sum(dim=1) > 0).all()
    longer = loaded(folders(name), tokens=TOKENS + 4).encode(PROMPTS[:1])[0]
    torch.testing.assert_close(longer[:TOKENS], text)
    assert (longer[3:] == 0).all()


def test_clip_keeps_its_padding(folders: Callable[[str], Path]) -> None:
    text = loaded(folders("clip_text_model")).encode(PROMPTS[:1])[0]
    assert (text.abs().sum(dim=1) > 0).all()


def test_clip_reads_all_it_can_and_no_more(folders: Callable[[str], Path]) -> None:
    assert TextModel.from_pretrained(folders("clip_text_model")).config.tokens == 8
    assert TextModel.from_pretrained(folders("t5")).config.tokens == 128
    with pytest.raises(ValueError, match="reads at most 8 tokens, got tokens=9"):
        loaded(folders("clip_text_model"), tokens=9)


def test_the_text_half_of_a_whole_clip_is_read(tmp_path: Path) -> None:
    text = clip_text()
    picture = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.CLIPConfig(
        text_config=text.config.to_dict(), vision_config=picture.to_dict(), projection_dim=8
    )
    saved_text(lambda: transformers.CLIPModel(config), tmp_path)
    model = loaded(tmp_path)
    assert model.config.family == "clip"
    assert model.encode(PROMPTS).shape == (2, TOKENS, 16)


@every
def test_nothing_is_the_empty_prompt_in_equal_rows(name: str, folders: Callable[[str], Path]) -> None:
    model = loaded(folders(name))
    nothing = model.encode_nothing(3)
    assert nothing.shape == (3, TOKENS, 16)
    assert torch.equal(nothing[0], nothing[2])
    assert not torch.allclose(nothing[0], model.encode(PROMPTS)[0])


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_prompt_is_refused(empty: str, folders: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="has no word in it; describe what the clip should show"):
        loaded(folders("t5")).encode([PROMPTS[0], empty])


def test_a_config_is_enough_and_weights_wait_until_they_are_needed(folders: Callable[[str], Path]) -> None:
    model = loaded(folders("umt5"))
    config = from_dict(TextModelConfig, json.loads(json.dumps(to_dict(model.config))))
    later = TextModel(config)
    assert (config, later.loaded, later.text_width) == (model.config, False, 16)
    assert torch.equal(later.encode(PROMPTS), model.encode(PROMPTS))
    assert later.loaded


def test_half_precision_is_near_and_another_encoder(folders: Callable[[str], Path]) -> None:
    full, half = loaded(folders("t5")), loaded(folders("t5"), dtype="bfloat16")
    assert half.config.key != full.config.key
    text = half.encode(PROMPTS)
    torch.testing.assert_close(text, full.encode(PROMPTS), rtol=0.1, atol=0.1)
    assert torch.equal(text, text.bfloat16().float())


def test_the_key_knows_weights_and_length_and_not_the_place(folders: Callable[[str], Path], tmp_path: Path) -> None:
    config = loaded(folders("t5")).config
    again = loaded(saved_text(t5, tmp_path / "again")).config
    other = loaded(saved_text(t5, tmp_path / "other", seed=1)).config
    assert again.source != config.source
    assert again.key == config.key
    assert len({config.key, other.key, replace(config, tokens=9).key}) == 3


def test_other_weights_in_the_same_place_are_noticed(tmp_path: Path) -> None:
    config = loaded(saved_text(t5, tmp_path)).config
    saved_text(t5, tmp_path, seed=1)
    with pytest.raises(ValueError, match="holds other weights"):
        TextModel(config).encode(PROMPTS)


def test_it_is_found_in_the_subfolders_of_a_pipeline(tmp_path: Path) -> None:
    saved_text(t5, tmp_path, model="text_encoder", tokenizer="tokenizer")
    model = loaded(tmp_path, subfolder="text_encoder", tokenizer="tokenizer")
    again = TextModel(model.config)
    assert torch.equal(again.encode(PROMPTS), model.encode(PROMPTS))


def test_copies_share_the_weights(folders: Callable[[str], Path]) -> None:
    model = loaded(folders("t5"))
    assert deepcopy([model])[0] is model


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="unknown family of text encoders 'bert': choose one of clip"):
        TextModel.from_pretrained(tmp_path)


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    saved_text(t5, tmp_path)
    described = tmp_path / "tokenizer_config.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "pad_token": None}))
    with pytest.raises(ValueError, match="has no padding token; give the one of a text encoder"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "bert"}, "unknown family of text encoders 'bert'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"width": 0}, "width must be at least 1"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any], said: str) -> None:
    good = TextModelConfig(source="x", family="t5", width=16, tokens=8, fingerprint="abc")
    with pytest.raises(ValueError, match=said):
        replace(good, **change)
