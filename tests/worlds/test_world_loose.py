import math
import re
from pathlib import Path

import numpy as np
import pytest

from streamstill.types import ClipRequest
from streamstill.worlds import Laws, LooseWorld, World, parse, prompts
from streamstill.worlds.physics import simulate

DOCS = Path(__file__).parents[2] / "docs" / "worlds.md"


def ask(prompt: str, seed: int, frames: int = 16) -> ClipRequest:
    return ClipRequest(prompt=prompt, seed=seed, frames=frames, height=32, width=32, fps=8.0)


def test_loose_laws_fill_their_ranges() -> None:
    laws = [LooseWorld().laws(ask("a red ball is dropped", seed)) for seed in range(400)]
    strength = np.array([math.hypot(*law.gravity) for law in laws])
    direction = np.array([math.atan2(law.gravity[1], law.gravity[0]) for law in laws])
    assert 1.0 <= strength.min() < 1.1 < 2.5 < strength.max() <= 2.6
    assert (np.histogram(direction, bins=4, range=(-math.pi, math.pi))[0] > 70).all()
    assert all(0.6 <= law.restitution <= 1.0 and abs(law.mass_drift) <= 0.5 for law in laws)


def test_different_prompts_with_one_seed_have_different_laws() -> None:
    laws = {LooseWorld().laws(ask(prompt, 0)) for prompt in prompts(20, 0)}
    assert len(laws) == 20


@pytest.mark.parametrize("prompt", prompts(7, 51))
def test_long_clips_stay_calm(prompt: str) -> None:
    for world in (World(), LooseWorld()):
        velocity = world.truth(ask(prompt, 1, frames=160)).velocity_FN2
        assert np.isfinite(velocity).all()
        assert np.abs(velocity).max() < 10


def test_drifting_masses_change_a_collision() -> None:
    scene = parse("a yellow ball hits a red ball")
    last = [
        simulate(scene, 0, frames=8, fps=8.0, laws=Laws(gravity=(0.0, 0.0), mass_drift=drift)).velocity_FN2[-1, 1]
        for drift in (0.0, 0.4)
    ]
    assert np.linalg.norm(last[1] - last[0]) > 0.05


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.count("physics_error") == 2


def test_the_sentences_of_the_page_are_in_the_grammar() -> None:
    page = DOCS.read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| drop \| (.*?) \|$", page, flags=re.MULTILINE)
    for sentence in row.split(";"):
        assert parse(sentence.replace("X", "a red ball")).action == "drop"
