"""A teacher that only shows clips is refused, in one sentence, where velocities are needed."""

import subprocess
import sys

import pytest

from streamstill.teachers import WorldTeacher, require_open
from streamstill.worlds import World
from tests.teachers.fakes import NoiseTeacher
from tests.teachers.open_teachers import GaussianTeacher


def test_an_open_teacher_is_let_through_as_it_is() -> None:
    teacher = GaussianTeacher()
    assert require_open(teacher, "homework") is teacher


def test_a_black_box_is_refused_with_what_it_lacks_and_what_to_do() -> None:
    said = r"^stage 1 needs an open teacher, and 'noise' shows finished clips only \(it has no latent_shape, latents, "
    with pytest.raises(TypeError, match=said + r"velocity\); give a teacher whose weights you hold, or use afd, "):
        require_open(NoiseTeacher(), "stage 1")
    with pytest.raises(TypeError, match="'world' shows finished clips only"):
        require_open(WorldTeacher(World()), "stage 1")


def test_half_an_open_teacher_is_told_which_half_is_missing() -> None:
    class Half(NoiseTeacher):
        latent_shape = (1, 1, 1, 1)
        velocity = None

    with pytest.raises(TypeError, match=r"\(it has no latents\)"):
        require_open(Half(), "stage 1")


def test_knowing_what_an_open_teacher_is_loads_no_torch() -> None:
    code = "import sys; from streamstill.teachers import OpenTeacher, require_open; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
