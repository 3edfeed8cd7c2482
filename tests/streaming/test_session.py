from itertools import islice

import numpy as np
import pytest
import torch

from streamstill.streaming.rollout import Sampling
from streamstill.streaming.session import Session
from streamstill.testing import tiny_student

PROMPT, OTHER = "a red ball is dropped", "a blue box is thrown to the left"


def session(prompt: str = PROMPT, seed: int = 0) -> Session:
    return Session(tiny_student(seed=1), prompt, sampling=Sampling(), seed=seed)


def test_frames_arrive_one_by_one_in_the_students_size() -> None:
    frames = list(islice(session().frames(), 10))
    assert all(frame.shape == (3, 16, 16) and frame.dtype == np.uint8 for frame in frames)


def test_a_session_makes_what_a_rollout_makes() -> None:
    from streamstill.codec.video import to_frames
    from streamstill.streaming.rollout import rollout

    student = tiny_student(seed=1)
    with torch.no_grad():
        latents = rollout(
            student.network,
            student.encode_prompts([PROMPT]),
            frames=8,
            latent_shape=student.latent_shape[1:],
            sampling=Sampling(),
            generator=torch.Generator().manual_seed(0),
        )
    whole = to_frames(student.codec.decode(latents)[0][0])
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
