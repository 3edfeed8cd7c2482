"""Clips on disk answer their captions; a folder that is not in order is named, with the file or line at fault."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from streamstill.media import read_clip, write_clip
from streamstill.teachers import CachedTeacher, ClipStore, FolderTeacher, WorldTeacher, collect
from streamstill.types import Clip, ClipRequest, Geometry
from streamstill.worlds import World, sample_prompt
from tests.teachers.fakes import noise, question, same

SMALL = Geometry(frames=4, height=16, width=16, fps=8)


def grey(level: int, *, frames: int = 8) -> Clip:
    return Clip(frames_FCHW=np.full((frames, 3, 32, 48), level, np.uint8), fps=16)


def ask(teacher: FolderTeacher, prompt: str, seed: int = 0) -> Clip:
    return teacher.generate(ClipRequest.of(SMALL, prompt=prompt, seed=seed))


def level(clip: Clip) -> int:
    return round(float(clip.frames_FCHW.mean()) / 10) * 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips in a list: two of a cat, one of a dog."""
    made = tmp_path / "videos"
    for name, shade in (("a", 50), ("b", 100), ("c", 200)):
        write_clip(made / f"{name}.mp4", grey(shade))
    write_list(made, [("a.mp4", "a cat"), ("c.mp4", "a dog"), ("b.mp4", "a cat")])
    return made


def write_list(folder: Path, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"file": file, "prompt": prompt, "source": "mine"}) for file, prompt in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")


def test_a_caption_is_answered_with_its_clip_as_it_was_asked(folder: Path) -> None:
    teacher = FolderTeacher.open(folder)
    clip = ask(teacher, "a dog")
    assert teacher.prompts == ("a cat", "a dog")
    assert clip.geometry == SMALL
    assert level(clip) == 200
    assert clip.provenance == {"file": "c.mp4", "teacher": teacher.name, "prompt": "a dog", "seed": "0"}


def test_of_several_clips_the_seed_picks(folder: Path) -> None:
    teacher = FolderTeacher.open(folder)
    assert [level(ask(teacher, "a cat", seed)) for seed in (0, 1, 2, 3, -1)] == [50, 100, 50, 100, 100]


def test_text_files_beside_the_clips_do_as_well(folder: Path) -> None:
    (folder / "captions.jsonl").unlink()
    for name, caption in (("a", "a cat\n"), ("b", " a cow "), ("c", "a dog")):
        (folder / f"{name}.txt").write_text(caption)
    teacher = FolderTeacher.open(folder)
    assert teacher.prompts == ("a cat", "a cow", "a dog")
    assert level(ask(teacher, "a cow")) == 100


def test_a_folder_that_has_changed_is_another_teacher(folder: Path) -> None:
    names = {FolderTeacher.open(folder).name, FolderTeacher.open(folder).name}
    assert len(names) == 1
    assert min(names).startswith("folder/videos@")
    write_list(folder, [("a.mp4", "a cat"), ("c.mp4", "a dog"), ("b.mp4", "a cow")])
    names.add(FolderTeacher.open(folder).name)
    write_clip(folder / "b.mp4", noisy())
    names.add(FolderTeacher.open(folder).name)
    assert len(names) == 3
    assert FolderTeacher.open(folder, name="mine").name == "mine"


def noisy() -> Clip:
    return noise(question(frames=8, size=32))


def test_a_prompt_that_is_no_caption_shows_the_nearest(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"caption 'a dgo'; the nearest of its 2 captions is 'a dog'; ask for one of"):
        ask(FolderTeacher.open(folder), "a dgo")
    with pytest.raises(ValueError, match=r"the nearest of its 2 captions is"):
        ask(FolderTeacher.open(folder), "")


def test_a_caption_without_its_clip_is_named(folder: Path) -> None:
    (folder / "b.mp4").unlink()
    with pytest.raises(ValueError, match=r"names the clip .*b\.mp4, which does not exist; add the clip or drop"):
        FolderTeacher.open(folder)
    (folder / "captions.jsonl").unlink()
    for name in "abc":
        (folder / f"{name}.txt").write_text("a cat")
    with pytest.raises(ValueError, match=r"names the clip .*b\.mp4, which does not exist"):
        FolderTeacher.open(folder)


def test_a_clip_without_its_caption_is_named(folder: Path) -> None:
    write_list(folder, [("a.mp4", "a cat"), ("c.mp4", "a dog")])
    with pytest.raises(ValueError, match=r"the clip .*b\.mp4 has no caption; add it to captions\.jsonl or"):
        FolderTeacher.open(folder)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"file": "a.mp4", "prompt": ', r"line 2 of .*captions\.jsonl is not JSON .*; write one object per line"),
        ('["a.mp4", "a cat"]', r'line 2 of .* must be an object with the texts "file" and "prompt", got .*a cat'),
        ('{"file": "a.mp4"}', "line 2 of .* must be an object"),
        ('{"file": "a.mp4", "prompt": 7}', "line 2 of .* must be an object"),
        ('{"file": "a.mp4", "prompt": " "}', "line 2 of .* must be an object"),
    ],
)
def test_a_bad_line_is_numbered(folder: Path, line: str, problem: str) -> None:
    good = json.dumps({"file": "b.mp4", "prompt": "a cat"})
    (folder / "captions.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=problem):
        FolderTeacher.open(folder)


def test_a_folder_without_clips_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder of clips"):
        FolderTeacher.open(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no clips; put videos there and a captions\.jsonl"):
        FolderTeacher.open(tmp_path)
    (tmp_path / "a.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"the caption .*a\.txt is empty"):
        FolderTeacher.open(tmp_path)
    (tmp_path / "a.txt").write_bytes("ein Bär".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not written in UTF-8 .*; save it as UTF-8"):
        FolderTeacher.open(tmp_path)


def test_a_bad_video_is_named_when_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    good = (folder / "a.mp4").read_bytes()
    for content, problem in ((b"", "is an empty file"), (good[: len(good) // 2], "make or download the file again")):
        (folder / "a.mp4").write_bytes(content)
        teacher = CachedTeacher(FolderTeacher.open(folder), ClipStore.open(tmp_path / "cache"))
        with pytest.raises(ValueError, match=rf"a\.mp4 .*{problem}"):
            teacher.generate(ClipRequest.of(SMALL, prompt="a cat", seed=0))
    assert not (tmp_path / "cache").exists()


def test_a_clip_that_is_too_short_is_named(folder: Path) -> None:
    write_clip(folder / "c.mp4", grey(200, frames=5))
    with pytest.raises(ValueError, match=r"c\.mp4 is too short: at 8 frames a second it has 3 frames and 4 were asked"):
        ask(FolderTeacher.open(folder), "a dog")


@pytest.mark.slow
def test_the_real_clips_are_a_teacher(real_clips: Path, tmp_path: Path) -> None:
    teacher = CachedTeacher(FolderTeacher.open(real_clips), ClipStore.open(tmp_path / "cache"))
    geometry = Geometry(frames=16, height=48, width=80, fps=8)
    prompts = FolderTeacher.open(real_clips).prompts
    wanted = [ClipRequest.of(geometry, prompt=prompt, seed=seed) for prompt in prompts for seed in (0, 1)]
    report = collect(teacher, wanted)
    assert report.asked == len(wanted) == 2 * len(prompts)
    distinct = {teacher.generate(request).frames_FCHW.tobytes() for request in wanted}
    assert len(distinct) == 7


def test_clips_in_folders_below_are_found_by_the_list(folder: Path) -> None:
    (folder / "below").mkdir()
    shutil.move(folder / "b.mp4", folder / "below" / "b.mp4")
    write_list(folder, [("a.mp4", "a cat"), ("c.mp4", "a dog"), ("below/b.mp4", "a cow")])
    assert level(ask(FolderTeacher.open(folder), "a cow")) == 100
    assert read_clip(folder / "below" / "b.mp4").geometry.frames == 8


class Gossip:
    """A world that tells too much."""

    def render(self, request: ClipRequest) -> Clip:
        clip = noise(request)
        return Clip(frames_FCHW=clip.frames_FCHW, fps=clip.fps, provenance={"truth": "gravity is 9.8"})


def test_a_world_shows_its_pixels_and_keeps_its_truth() -> None:
    clip = WorldTeacher(Gossip(), name="gossip").generate(question(5))
    assert clip.provenance == {"teacher": "gossip", "prompt": "a red ball", "seed": "5"}
    assert same(Clip(frames_FCHW=clip.frames_FCHW, fps=8, provenance=noise(question(5)).provenance), noise(question(5)))
    assert WorldTeacher(Gossip()).name == "world"


def test_the_shipped_world_is_a_teacher(tmp_path: Path) -> None:
    prompt = sample_prompt(random.Random(0))
    teacher = CachedTeacher(WorldTeacher(World()), ClipStore.open(tmp_path / "cache"))
    clip = teacher.generate(ClipRequest.of(Geometry(frames=6, height=32, width=32, fps=8), prompt=prompt, seed=3))
    assert clip.provenance == {"teacher": "world", "prompt": prompt, "seed": "3"}
