import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from streamstill.types import ClipRequest
from streamstill.worlds import LooseWorld, World, parse, prompts
from streamstill.worlds.grammar import all_actions
from streamstill.worlds.palette import BACKGROUNDS, background

FINGERPRINT = """
import hashlib
from streamstill.types import ClipRequest
from streamstill.worlds import LooseWorld, World, prompts
digest = hashlib.sha256()
for seed, prompt in reversed(list(enumerate(prompts(14, 7)))):
    request = ClipRequest(prompt=prompt, seed=seed, frames=16, height=32, width=32, fps=8.0)
    for world in (World(), LooseWorld()):
        clip = hashlib.sha256(world.render(request).frames_FCHW.tobytes() + world.truth(request).position_FN2.tobytes())
        print(seed, type(world).__name__, clip.hexdigest())
"""


def ask(
    prompt: str, seed: int = 0, *, frames: int = 16, size: tuple[int, int] = (32, 32), fps: float = 8
) -> ClipRequest:
    return ClipRequest(prompt=prompt, seed=seed, frames=frames, height=size[0], width=size[1], fps=fps)


@pytest.mark.parametrize("prompt", prompts(7, 11))
def test_a_clip_is_the_request_and_the_same_again(prompt: str) -> None:
    request = ask(prompt, 5, frames=10, size=(24, 40), fps=12)
    clip = World().render(request)
    assert clip.geometry == request.geometry
    assert clip.provenance["prompt"] == prompt
    assert np.array_equal(clip.frames_FCHW, World().render(request).frames_FCHW)
    assert not np.array_equal(clip.frames_FCHW, World().render(ask(prompt, 6, frames=10, size=(24, 40))).frames_FCHW)


def test_another_process_and_another_order_give_the_same_bits() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "77"}
    command = [sys.executable, "-c", FINGERPRINT]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    expected = set()
    for seed, prompt in enumerate(prompts(14, 7)):
        for world in (World(), LooseWorld()):
            request = ask(prompt, seed)
            bits = world.render(request).frames_FCHW.tobytes() + world.truth(request).position_FN2.tobytes()
            expected.add(f"{seed} {type(world).__name__} {hashlib.sha256(bits).hexdigest()}")
    assert set(printed.splitlines()) == expected


def test_a_paraphrase_is_the_same_clip() -> None:
    one, other = (World().render(ask(text)) for text in ("A red ball is dropped.", "someone drops the red sphere"))
    assert np.array_equal(one.frames_FCHW, other.frames_FCHW)


@pytest.mark.parametrize("action", all_actions())
def test_every_size_shows_the_same_motion(action: str) -> None:
    for prompt in prompts(4, 4, actions=(action,)):
        small, big = ask(prompt, 2), ask(prompt, 2, size=(64, 64))
        assert np.array_equal(World().truth(small).position_FN2, World().truth(big).position_FN2)
        shrunk = World().render(big).frames_FCHW.reshape(16, 3, 32, 2, 32, 2).mean(axis=(3, 5))
        assert np.abs(shrunk - World().render(small).frames_FCHW).mean() < 1.5


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_are_muted_and_scale(name: str) -> None:
    stage = background(name, 32, 48).astype(float)
    assert (stage.max(axis=-1) - stage.min(axis=-1)).max() <= 16
    bigger = background(name, 64, 96).reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(bigger, stage, atol=1.5)


def test_edges_are_smooth() -> None:
    red = World().render(ask("A red ball is dropped.")).frames_FCHW[0, 0]
    assert len(np.unique(red)) > 8


@pytest.mark.parametrize("prompt", prompts(14, 6))
def test_the_loose_world_begins_alike_and_goes_on_otherwise(prompt: str) -> None:
    request = ask(prompt, 3)
    real, loose = World().render(request).frames_FCHW, LooseWorld().render(request).frames_FCHW
    assert np.array_equal(real[0], loose[0])
    assert not np.array_equal(real[-1], loose[-1])
    assert LooseWorld().laws(request) != LooseWorld().laws(ask(prompt, 4))


def test_the_loose_world_is_about_as_fast() -> None:
    speeds = []
    for world in (World(), LooseWorld()):
        places = [
            world.truth(ask(prompt, seed)).position_FN2[:, 0]
            for seed, prompt in enumerate(prompts(300, 5, actions=("drop", "throw left", "throw right")))
        ]
        speeds.append(np.mean([np.linalg.norm(np.diff(place, axis=0), axis=1).mean() for place in places]))
    assert 0.9 <= speeds[1] / speeds[0] <= 1.0


def test_a_stage_narrower_than_high_still_shows_every_body() -> None:
    for prompt in prompts(14, 8):
        frames = World().render(ask(prompt, 1, size=(64, 32))).frames_FCHW
        empty = background(parse(prompt).background, 64, 32).transpose(2, 0, 1)
        assert (np.abs(frames.astype(int) - empty).max(axis=1) > 60).any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ask("a red ball is dropped", size=(4, 32)), "pixels a side"),
        (ask("a red ball is dropped", size=(32, 320)), "width / height"),
        (ask("a red ball is dropped", fps=0.01), "fps"),
        (ask("a red ball is dropped", fps=float("nan")), "fps"),
        (ask("a red ball is dropped", frames=0), "frame"),
        (ask("a cat plays the piano"), "cannot play"),
    ],
)
def test_impossible_requests_are_refused(request_: ClipRequest, words: str) -> None:
    for world in (World(), LooseWorld()):
        with pytest.raises(ValueError, match=words):
            world.render(request_)
