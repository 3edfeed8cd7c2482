"""A package that is installed gives teachers by name, without a line changed here; what is wrong with one is said."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamstill.teachers import CachedTeacher, ClipStore
from streamstill.teachers.api.fal import FalTeacher
from streamstill.teachers.api.veo import VeoTeacher
from streamstill.teachers.gym import GymTeacher
from streamstill.teachers.plugins import find_teacher, is_job_teacher, known_teachers
from streamstill.teachers.teacher import Teacher
from tests.teachers.fakes import question

MODULE = "toy_teachers_for_streamstill"
SOURCE = """
import numpy as np
from streamstill.types import Clip


class Plain:
    name = "plain"

    def __init__(self, *, shade=7):
        self.shade, self.name = shade, f"plain/{shade}"

    def generate(self, request):
        shape = (request.frames, 3, request.height, request.width)
        return Clip(frames_FCHW=np.full(shape, self.shade, np.uint8), fps=request.fps)


class Jobs:
    name, price = "jobs", None

    async def submit(self, request): ...
    async def poll(self, job): ...
    async def download(self, job, status, into): ...
    async def close(self): ...


def make(shade: int, depth: int = 1):
    return Plain(shade=shade * depth)


ready = Plain(shade=9)


def wrong():
    return {"no": "teacher"}


def fails():
    raise RuntimeError("the licence has run out")
"""
OFFERED = {
    "plain": "Plain",
    "made": "make",
    "ready": "ready",
    "jobs": "Jobs",
    "wrong": "wrong",
    "fails": "fails",
    "absent": "nothing_of_the_kind",
}


def install(folder: Path, name: str, source: str, offered: dict[str, str]) -> None:
    """Make a wheel of one module and unpack it, which is what installing one is."""
    module = name.replace("-", "_")
    wheel, about = folder.parent / f"{module}-1.0-py3-none-any.whl", f"{module}-1.0.dist-info"
    lines = [f"{teacher} = {module}:{place}" for teacher, place in offered.items()]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{module}.py", source)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{about}/entry_points.txt", "\n".join(["[streamstill.teachers]", *lines, ""]))
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, on the path, with the toy in it."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    install(folder, MODULE.replace("_", "-"), SOURCE, OFFERED)
    yield folder
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def generates(found: object) -> Teacher:
    assert hasattr(found, "generate")
    return found  # type: ignore[return-value]  # it has the members


def test_an_installed_package_gives_a_teacher_that_works_like_any_other(site: Path, tmp_path: Path) -> None:
    teacher = generates(find_teacher("plain"))
    clip = CachedTeacher(teacher, ClipStore.open(tmp_path / "cache")).generate(question())
    assert (clip.geometry, int(clip.frames_FCHW.max())) == (question().geometry, 7)
    assert not is_job_teacher(teacher)


def test_options_go_to_the_class_or_the_function(site: Path) -> None:
    assert find_teacher("plain", {"shade": 3}).name == "plain/3"
    assert find_teacher("made", {"shade": 3, "depth": 2}).name == "plain/6"
    assert find_teacher("ready").name == "plain/9"


def test_a_teacher_behind_an_api_is_found_as_one(site: Path) -> None:
    assert is_job_teacher(find_teacher("jobs"))


def test_names_are_listed_without_importing_anything(site: Path) -> None:
    assert set(OFFERED) | {"fal", "gym", "pipeline", "replicate", "veo"} <= set(known_teachers())
    assert list(known_teachers()) == sorted(known_teachers())
    assert MODULE not in sys.modules


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("plian", {}, r"unknown teacher 'plian': choose one of .*; did you mean 'plain'\?"),
        ("plain", {"shadow": 1}, r"does not take these options \(.*'shadow'\); its options are: shade$"),
        ("made", {}, r"does not take these options \(missing .*'shade'\); its options are: shade, depth$"),
        ("ready", {"shade": 1}, "the teacher 'ready' of toy-teachers-for-streamstill takes no options, got shade"),
        ("wrong", {}, r"the teacher 'wrong' of .* gives dict, which is no teacher; a teacher has a name and generate"),
        ("absent", {}, r"the teacher 'absent' of .* cannot be loaded \(AttributeError: .*\); mend or update"),
    ],
)
def test_what_is_wrong_is_said_with_the_name_of_the_package(
    site: Path, name: str, options: dict[str, object], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        find_teacher(name, options)
    assert "\n" not in str(caught.value)


def test_the_errors_of_a_plugin_stay_its_own(site: Path) -> None:
    with pytest.raises(RuntimeError, match="the licence has run out"):
        find_teacher("fails")


def test_a_package_that_does_not_import_is_named(site: Path) -> None:
    install(site, "broken-toy", "import a_library_that_nobody_has", {"broken": "x"})
    with pytest.raises(
        ValueError, match=r"'broken' of broken-toy cannot be loaded \(ModuleNotFoundError: .*nobody_has"
    ):
        find_teacher("broken")
    assert find_teacher("plain").name == "plain/7", "the others are as well as before"


def test_two_packages_with_one_name_are_both_named(site: Path) -> None:
    install(site, "other-toy", SOURCE, {"plain": "Plain", "fal": "Plain"})
    with pytest.raises(ValueError, match="'plain' is offered by other-toy and toy-teachers-for-streamstill; keep one"):
        find_teacher("plain")
    with pytest.raises(ValueError, match="'fal' is offered by other-toy and streamstill; keep one"):
        find_teacher("fal", {"model": "a/b"})


def test_the_teachers_of_the_package_are_found_by_name_and_configured_strictly() -> None:
    options = json.loads('{"model": "a/b", "asking": {"fields": {"text": "{prompt}"}, "lengths": [5, 10]}}')
    fal = find_teacher("fal", options)
    assert isinstance(fal, FalTeacher)
    assert fal.config.asking.lengths == (5, 10)
    overridden = find_teacher("fal", {**options, "asking.lengths": [4], "price": 0.5})
    assert isinstance(overridden, FalTeacher)
    assert (overridden.config.asking.lengths, overridden.config.asking.fields) == ((4,), {"text": "{prompt}"})
    assert isinstance(find_teacher("veo", {"model": "veo-test"}), VeoTeacher)
    assert is_job_teacher(fal)
    gym = find_teacher("gym", {"env": "Toy-v0", "prompt": "still"})
    assert isinstance(gym, GymTeacher)
    assert not is_job_teacher(gym)
    with pytest.raises(ValueError, match=r"replicate has no field \['modle'\]; its fields are"):
        find_teacher("replicate", {"modle": "a/b"})
    with pytest.raises(ValueError, match=r"fal is incomplete: .*model"):
        find_teacher("fal")


def test_naming_the_teachers_of_the_package_loads_neither_torch_nor_diffusers() -> None:
    heavy = "bool({'torch', 'diffusers', 'gymnasium', 'httpx'} & set(sys.modules))"
    code = f"import sys, streamstill.teachers.plugins as plugins; plugins.known_teachers(); sys.exit({heavy})"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, r"pipeline is incomplete: .*source"),
        ({"source": "a", "setps": 3}, r"pipeline has no field \['setps'\]; its fields are"),
        ({"source": "a", "geometry.frmes": 3}, r"pipeline.geometry has no field \['frmes'\]"),
        ({"source": "."}, r"the folder \. holds no pipeline \(it has no model_index.json\)"),
    ],
)
def test_a_pipeline_is_configured_strictly(
    options: dict[str, object], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers", reason='install the local extra: pip install "streamstill[local]"')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=problem):
        find_teacher("pipeline", options)
