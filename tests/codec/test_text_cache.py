from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamstill.codec.text_cache import CachedText, TextCache
from streamstill.codec.text_models import TextModel
from tests.codec.tiny_models import PROMPTS, clip_text, saved_text, t5

OTHERS = ["a ball", "a red box over the blue edge"]


class Watched(TextModel):
    """A real encoder that says what it was asked."""

    asked: list[str]

    def encode(self, prompts: Sequence[str], device: torch.device | None = None) -> Tensor:
        self.asked.extend(prompts)
        return super().encode(prompts, device)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return TextModel.from_pretrained(saved_text(t5, tmp_path_factory.mktemp("text")), tokens=8)


@pytest.fixture
def watched(model: TextModel) -> Watched:
    encoder = Watched(model.config, model._at(None))
    encoder.asked = []
    return encoder


@pytest.fixture
def text(watched: Watched, tmp_path: Path) -> CachedText:
    made = CachedText(watched.config, watched)
    made.keep_in(tmp_path)
    return made


def file_of(folder: Path) -> Path:
    (file,) = folder.rglob("*.safetensors")
    return file


def test_cached_embeddings_equal_fresh_ones(text: CachedText, watched: Watched, model: TextModel) -> None:
    fresh = model.encode([*PROMPTS, *OTHERS])
    torch.testing.assert_close(text.encode(PROMPTS), fresh[:2])
    torch.testing.assert_close(text.encode([*OTHERS, PROMPTS[0]]), torch.cat([fresh[2:], fresh[:1]]))
    assert watched.asked == [*PROMPTS, *OTHERS]  # nothing twice


def test_they_come_back_bit_for_bit_in_another_process_that_has_no_encoder(text: CachedText, tmp_path: Path) -> None:
    before = text.encode(PROMPTS)
    nothing = text.encode_nothing(2)
    later = CachedText(text.config)
    later.keep_in(tmp_path)
    assert torch.equal(later.encode(PROMPTS[::-1]), before.flip(0))
    assert torch.equal(later.encode_nothing(2), nothing)
    assert not later.encoder.loaded


def test_a_prompt_that_comes_twice_is_encoded_once(text: CachedText, watched: Watched) -> None:
    rows = text.encode([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    assert watched.asked == PROMPTS
    assert torch.equal(rows[0], rows[2])


def test_many_prompts_are_all_kept(text: CachedText, watched: Watched) -> None:
    prompts = [f"a red ball {'blue ' * number}" for number in range(35)]
    rows = text.encode(prompts)
    assert rows.shape == (35, 8, 16)
    assert len(watched.asked) == 35
    assert torch.equal(text.encode(prompts[20:21])[0], rows[20])


def test_without_a_folder_the_encoder_is_asked_every_time(watched: Watched, model: TextModel) -> None:
    text = CachedText(watched.config, watched)
    assert torch.equal(text.encode(PROMPTS), model.encode(PROMPTS))
    text.encode(PROMPTS)
    assert watched.asked == PROMPTS * 2
    assert torch.equal(text.encode_nothing(2), model.encode_nothing(2))


def test_half_precision_is_kept_without_loss(tmp_path: Path) -> None:
    half = TextModel.from_pretrained(saved_text(t5, tmp_path / "model"), tokens=8, dtype="bfloat16")
    cache = TextCache(tmp_path / "cache", half.config)
    fresh = half.encode(PROMPTS[:1])
    cache.add(PROMPTS[:1], fresh)
    assert torch.equal(cache.get(PROMPTS[0]), fresh[0])
    assert load_file(file_of(tmp_path / "cache"))["text_LD"].dtype == torch.bfloat16


def test_encoders_do_not_see_each_others_embeddings(text: CachedText, tmp_path: Path) -> None:
    text.encode(PROMPTS)
    other = TextModel.from_pretrained(saved_text(clip_text, tmp_path / "clip"))
    assert PROMPTS[0] in TextCache(tmp_path, text.config)
    assert PROMPTS[0] not in TextCache(tmp_path, other.config)


def test_embeddings_go_where_the_student_goes(text: CachedText) -> None:
    assert text.to(torch.float64).encode(PROMPTS).dtype == torch.float64
    assert text.to(torch.bfloat16).encode_nothing(1).dtype == torch.bfloat16
    assert text.to("meta").encode(PROMPTS).device.type == "meta"


def test_it_has_nothing_to_learn_and_nothing_to_save(text: CachedText) -> None:
    assert list(text.parameters()) == []
    assert text.state_dict() == {}
    assert not text.encode(PROMPTS).requires_grad
    assert text.text_width == 16


def test_no_file_is_left_half_written(text: CachedText, tmp_path: Path) -> None:
    text.encode(PROMPTS)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".safetensors"] * 2
    assert all(len(path.stem) == 64 for path in files)


def test_an_unknown_prompt_is_a_key_error(text: CachedText, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="has no embedding of 'a ball'"):
        TextCache(tmp_path, text.config).get("a ball")


def test_a_damaged_file_is_named(text: CachedText, tmp_path: Path) -> None:
    text.encode(PROMPTS[:1])
    file = file_of(tmp_path)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"is damaged \(.*\); delete it, and it is made again"):
        text.encode(PROMPTS[:1])
    file.unlink()
    assert text.encode(PROMPTS[:1]).shape == (1, 8, 16)


def test_a_file_of_another_prompt_or_format_is_refused(text: CachedText, tmp_path: Path) -> None:
    text.encode(PROMPTS[:1])
    file = file_of(tmp_path)
    for described in ({"format": "1", "prompt": "another"}, {"format": "0", "prompt": PROMPTS[0]}):
        save_file(load_file(file), file, described)
        with pytest.raises(ValueError, match="is no embedding of 'a red ball' in format 1; delete it"):
            text.encode(PROMPTS[:1])


def test_an_empty_prompt_is_refused_though_nothing_is_cached(text: CachedText) -> None:
    text.encode_nothing(1)
    with pytest.raises(ValueError, match="has no word in it"):
        text.encode(["a ball", ""])
