import subprocess
import sys

import pytest
import torch

from streamstill.codec.text import WordEncoder, WordEncoderConfig, _bucket

WORDS = ["a", "the", "red", "green", "blue", "yellow", "purple", "orange", "ball", "box", "small", "large"]
WORDS += ["left", "right", "dropped", "thrown", "ramp", "stack", "pendulum", "swings", "topples", "dark", "light"]


def encoder() -> WordEncoder:
    torch.manual_seed(0)
    return WordEncoder(WordEncoderConfig())


def test_shapes_do_not_depend_on_the_words() -> None:
    text = encoder().encode(["A ball.", " ".join(WORDS * 5)])
    assert text.shape == (2, 24, 64)


def test_case_and_punctuation_do_not_matter_but_words_and_their_order_do() -> None:
    text = encoder().encode(["A red ball hits a blue box.", "a RED ball hits a blue box", "a blue ball hits a red box"])
    assert torch.equal(text[0], text[1])
    assert not torch.allclose(text[0], text[2])


def test_a_batch_equals_its_prompts_alone() -> None:
    prompts = ["a red ball", "a blue box topples over the edge"]
    model = encoder()
    together = model.encode(prompts)
    alone = torch.cat([model.encode([prompt]) for prompt in prompts])
    torch.testing.assert_close(together, alone)


def test_no_two_words_of_the_world_share_both_buckets() -> None:
    pairs = {(_bucket(word, "a", 512), _bucket(word, "b", 512)) for word in WORDS}
    assert len(pairs) == len(WORDS)


def test_buckets_are_the_same_in_another_process() -> None:
    code = "from streamstill.codec.text import _bucket; print(_bucket('ball', 'a', 512))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == _bucket("ball", "a", 512)


def test_a_prompt_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="has no word in it"):
        encoder().encode(["a ball", " ... "])


def test_it_learns() -> None:
    model = encoder()
    before = model.encode(["a red ball"]).mean()
    before.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_nothing_is_a_text_of_its_own_and_equal_for_every_clip() -> None:
    model = encoder()
    nothing = model.encode_nothing(3)
    assert nothing.shape == (3, 24, 64)
    assert torch.equal(nothing, nothing[:1].expand(3, -1, -1))
    torch.testing.assert_close(nothing[:1], model.encode_nothing(1))
    assert all(not torch.allclose(text, nothing[0]) for text in model.encode(["a", "a red ball", " ".join(WORDS)]))


def test_nothing_goes_through_the_same_layers_as_a_prompt_and_learns_with_them() -> None:
    """A word whose two rows are as empty as padding says nothing."""
    model = encoder()
    with torch.no_grad():
        for table, salt in zip(model.words, ("a", "b"), strict=True):
            assert isinstance(table, torch.nn.Embedding)
            table.weight[_bucket("ball", salt, 512)] = 0
    torch.testing.assert_close(model.encode(["ball"]), model.encode_nothing(1))
    model.encode_nothing(2).square().sum().backward()
    unused = {"words.0.weight", "words.1.weight"}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad.abs().sum() > 0) == (name not in unused)
