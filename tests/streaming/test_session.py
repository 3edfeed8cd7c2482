from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig
from streamstill.codec.light_decoder import LightCodec, LightDecoder, LightDecoderConfig
from streamstill.codec.patch import PatchCodec
from streamstill.codec.video import VideoCodec, to_frames, to_pixels
from streamstill.flow.times import Sampling
from streamstill.streaming.rollout import rollout
from streamstill.streaming.session import Session, still_opening
from streamstill.student.student import Student
from streamstill.testing import tiny_student
from streamstill.types import Frames

PROMPT, OTHER = "a red ball is dropped", "a blue box is thrown to the left"


def session(prompt: str = PROMPT, seed: int = 0, first_frame: Frames | None = None) -> Session:
    return Session(tiny_student(seed=1), prompt, sampling=Sampling(), seed=seed, first_frame=first_frame)


def picture(seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (3, 16, 16), dtype=np.uint8)


@torch.no_grad()
def rolled_out(student: Student, *, frames: int, opening: Tensor | None = None) -> Tensor:
    """What one rollout makes of the prompt, in latents."""
    return rollout(
        student.network,
        student.encode_prompts([PROMPT]),
        frames=frames,
        latent_shape=student.latent_shape[1:],
        sampling=Sampling(),
        generator=torch.Generator().manual_seed(0),
        opening_BFCHW=opening,
    )


def test_frames_arrive_one_by_one_in_the_students_size() -> None:
    frames = list(islice(session().frames(), 10))
    assert all(frame.shape == (3, 16, 16) and frame.dtype == np.uint8 for frame in frames)


def test_a_session_makes_what_a_rollout_makes() -> None:
    student = tiny_student(seed=1)
    whole = to_frames(student.codec.decode(rolled_out(student, frames=8))[0][0])
    assert np.array_equal(np.stack(list(islice(session().frames(), 16))), whole)


def test_a_new_prompt_takes_effect_at_the_next_chunk_and_keeps_the_past() -> None:
    steady, changed = session(), session()
    assert np.array_equal(steady.next_chunk(), changed.next_chunk())
    changed.prompt = OTHER
    assert changed.prompt == OTHER
    after = changed.next_chunk()
    assert not np.array_equal(steady.next_chunk(), after)
    fresh = session(OTHER)
    fresh.next_chunk()
    assert not np.array_equal(fresh.next_chunk(), after)  # the past was another one


def test_a_refused_prompt_changes_nothing() -> None:
    one, two = session(), session()
    with pytest.raises(ValueError, match="no word"):
        one.prompt = "?!"
    assert one.prompt == PROMPT
    assert np.array_equal(one.next_chunk(), two.next_chunk())


def test_restart_begins_the_same_video_again_or_another() -> None:
    one = session()
    first = one.next_chunk()
    one.next_chunk()
    one.restart()
    assert np.array_equal(one.next_chunk(), first)
    one.restart(seed=5)
    assert not np.array_equal(one.next_chunk(), first)


def test_a_restart_uses_the_prompt_of_now() -> None:
    one = session()
    one.prompt = OTHER
    one.restart()
    assert np.array_equal(one.next_chunk(), session(OTHER).next_chunk())


def test_streaming_leaves_gradients_as_they_were() -> None:
    one = session()
    frames = one.frames()
    next(frames)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_the_first_frame_is_shown_first_and_the_video_goes_on_from_it() -> None:
    student, one = tiny_student(seed=1), session(first_frame=picture())
    still = one.next_chunk()
    assert still.shape == (4, 3, 16, 16)
    assert all(np.array_equal(frame, picture()) for frame in still)
    opening = student.codec.encode(to_pixels(still)[None])
    with torch.no_grad():
        latents = rollout(
            student.network,
            student.encode_prompts([PROMPT]),
            frames=6,
            latent_shape=student.latent_shape[1:],
            sampling=Sampling(),
            generator=torch.Generator().manual_seed(0),
            opening_BFCHW=opening,
        )
    expected = to_frames(student.codec.decode(latents)[0][0])
    assert np.array_equal(np.concatenate([still, one.next_chunk(), one.next_chunk()]), expected)


def test_another_first_frame_is_another_video() -> None:
    one, other, none = session(first_frame=picture()), session(first_frame=picture(1)), session()
    one.next_chunk()
    other.next_chunk()
    later = one.next_chunk()
    assert not np.array_equal(later, other.next_chunk())
    assert not np.array_equal(later, none.next_chunk())


def test_a_restart_begins_with_the_same_first_frame() -> None:
    one = session(first_frame=picture())
    first, second = one.next_chunk(), one.next_chunk()
    one.restart()
    assert np.array_equal(one.next_chunk(), first)
    assert np.array_equal(one.next_chunk(), second)
    one.restart(seed=3)
    assert np.array_equal(one.next_chunk(), first)
    assert not np.array_equal(one.next_chunk(), second)


def test_a_prompt_given_while_the_first_frame_is_shown_holds_from_there() -> None:
    one, other = session(first_frame=picture()), session(OTHER, first_frame=picture())
    one.next_chunk()
    one.prompt = OTHER
    other.next_chunk()
    assert np.array_equal(one.next_chunk(), other.next_chunk())


def test_nothing_leaks_between_sessions_of_one_student() -> None:
    student = tiny_student(seed=1)

    def fresh(seed: int) -> Session:
        return Session(student, PROMPT, sampling=Sampling(), seed=seed, first_frame=picture(seed))

    alone = [list(islice(fresh(seed).frames(), 12)) for seed in (0, 1)]
    pair = fresh(0), fresh(1)
    turns = [[one.next_chunk() for one in pair] for _ in range(3)]
    for mixed, frames in zip(zip(*turns, strict=True), alone, strict=True):
        assert np.array_equal(np.concatenate(mixed), frames)


def light_codec(codec: PatchCodec) -> LightCodec:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LightCodec(codec, LightDecoder(LightDecoderConfig.of(codec, width=8)).eval())


def test_another_codec_decodes_the_same_chunks_and_remembers_its_own_past() -> None:
    student, light = tiny_student(seed=1), light_codec(PatchCodec())
    one = Session(student, PROMPT, sampling=Sampling(), first_frame=picture(), codec=light)
    opening = student.codec.encode(to_pixels(picture()).expand(1, 4, 3, 16, 16))
    with torch.no_grad():
        expected = to_frames(light.decode(rolled_out(student, frames=6, opening=opening))[0][0])
    for _ in range(2):
        made = np.concatenate([one.next_chunk() for _ in range(3)])
        np.testing.assert_allclose(made.astype(int), expected, atol=1)  # pieces, to rounding
        one.restart()
    own = np.concatenate([one.next_chunk() for one in [session(first_frame=picture())] for _ in range(3)])
    assert np.abs(own.astype(int) - expected).mean() > 5


@pytest.mark.parametrize("codec", [PatchCodec(frames=1), PatchCodec(size=2), light_codec(PatchCodec(size=8))])
def test_a_codec_of_other_latents_is_refused(codec: VideoCodec) -> None:
    with pytest.raises(ValueError, match=r"and the student's own of \(96, \(2, 4, 4\), 2\); give one that decodes"):
        Session(tiny_student(), PROMPT, sampling=Sampling(), codec=codec)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 16, 32), dtype=np.uint8),
        np.zeros((16, 16, 3), dtype=np.uint8),
        np.zeros((1, 3, 16, 16), dtype=np.uint8),
        np.zeros((3, 16, 16), dtype=np.float32),
    ],
)
def test_a_first_frame_of_another_size_or_kind_is_refused(wrong: Frames) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(3, 16, 16\), got (uint8|float32) of shape \("):
        session(first_frame=wrong)


def test_a_video_that_was_broken_off_says_how_to_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    student = tiny_student(seed=1)
    made = Session(student, PROMPT, sampling=Sampling())
    first = made.next_chunk()
    decode = type(student.codec).decode

    def broken(*_: object) -> object:
        raise MemoryError("no room")

    monkeypatch.setattr(type(student.codec), "decode", broken)
    with pytest.raises(MemoryError):
        made.next_chunk()
    monkeypatch.setattr(type(student.codec), "decode", decode)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"call restart\(\)"):
            next(made.frames())
    made.restart()
    assert np.array_equal(made.next_chunk(), first)


def test_a_picture_goes_to_where_a_learned_codec_has_its_weights() -> None:
    config = replace(tiny_student(seed=1).config, codec=LearnedCodecConfig(width=8, blocks=1))
    network = replace(config.network, latent_channels=LearnedCodec(config.codec).latent_channels)  # type: ignore[arg-type]
    student = Student(replace(config, network=network)).eval().bfloat16()
    height, width = student.config.geometry.height, student.config.geometry.width
    still = np.full((3, height, width), 100, dtype=np.uint8)
    made = Session(student, PROMPT, sampling=Sampling(), first_frame=still)
    assert made.next_chunk().dtype == np.uint8
    assert still_opening(student, still, device=student.device).dtype == torch.bfloat16
