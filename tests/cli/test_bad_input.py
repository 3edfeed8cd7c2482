"""Bad input: one clear sentence, a status that is not zero, and nothing half-written."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from streamstill.media import write_clip
from streamstill.student.student import Student
from streamstill.teachers import ClipStore
from streamstill.training.objectives.flow_matching import FlowMatching
from streamstill.types import Clip
from tests.cli.conftest import Ended, Run
from tests.cli.test_cli import TINY_SIZE, collected
from tests.recipes.tiny import FOLDER, as_flags, files


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two grey clips of 8 frames with a caption each."""
    folder = tmp_path / "clips"
    for name, grey in (("night", 20), ("day", 230)):
        shade = np.full((8, 3, 16, 32), grey, dtype=np.uint8)
        write_clip(folder / f"{name}.mp4", Clip(frames_FCHW=shade, fps=8))
        (folder / f"{name}.txt").write_text(f"a wall by {name}")
    return folder


def distil_folder(run: Run, clips: Path, *overrides: str) -> Ended:
    return run("distill", "folder", "--clips", clips, "--out", "run", *as_flags([*FOLDER, *overrides]))


def train(run: Run, student: Path, *flags: object) -> Ended:
    return run("train", student, "--cache", "cache", "--out", "taught", "--steps", 2, "--set", "batch=2", *flags)


def stream(run: Run, student: Path, *flags: object) -> Ended:
    return run("stream", student, "--prompt", "A red ball is dropped.", "--frames", 4, "--out", "v.mp4", *flags)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("quickstrat",),
            "unknown recipe 'quickstrat': choose one of quickstart, folder, base, kd, few; did you mean 'quickstart'?",
        ),
        (("xyz",), "unknown recipe 'xyz': choose one of quickstart, folder, base, kd"),
        (("folder",), "the recipe folder needs --clips DIR, a folder of videos with captions.jsonl"),
        (
            ("base", "--clips", "there"),
            "the recipe base has a teacher of its own; --clips belongs to the recipe folder",
        ),
        (("folder", "--clips", "nowhere"), "there is no folder of clips nowhere; check the name"),
        (("base", "--set", "stesp=3"), "this recipe has no field 'stesp'; its fields are ['geometry', 'steps'"),
        (("base", "--set", "learn.optim.lrr=3"), "learn.optim has no field 'lrr'"),
        (("base", "--set", "steps"), "write it as key=value"),
        (("base", "--set", "steps=many"), "steps must be int, got 'many'"),
        (("base", "--set", "geometry.height=30"), "height 30 is not divisible by 8"),
        (("base", "--set", "sampling.steps=0"), "a sampler needs steps >= 1 and shift > 0, got steps=0"),
        (("quickstart", "--set", "afd_updates=0"), "afd_updates must be at least 1, got 0"),
        (("quickstart", "--set", "warm.steps=0"), "steps must be at least 1, got 0"),
        (("quickstart", "--set", "clips=1"), "clips must be at least clips_per_prompt=2, got 1"),
        (("quickstart", "--set", "base=nowhere"), "nowhere is not a student: it has no config.json"),
    ],
)
def test_a_recipe_that_cannot_run_says_why_and_writes_nothing(run: Run, words: tuple[str, ...], said: str) -> None:
    run("distill", *words).says(said)
    assert not list(Path.cwd().iterdir())


def test_a_prompt_outside_the_grammar_shows_valid_ones(run: Run) -> None:
    Path("prompts.txt").write_text("A cat plays the piano.\n")
    words = ("--prompts", "prompts.txt", "--count", 2, "--size", TINY_SIZE, "--cache", "cache")
    told = run("collect", "world", *words)
    told.says("A cat plays the piano.")
    assert "A red ball is dropped." in told.err
    assert len(ClipStore.open(Path("cache"))) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--size", "big"), "cannot read the size 'big'; write FRAMESxHEIGHTxWIDTH@FPS, for example 16x32x32@8"),
        (("--size", "0x16x16@8"), "every field of a Geometry must be positive"),
        (("--count", "0"), "--count must be at least 1, got 0"),
        (("--prompts", "nowhere.txt"), "there is no prompt file nowhere.txt; write one prompt a line"),
    ],
)
def test_a_collection_that_cannot_be_made_says_why(run: Run, flags: tuple[str, ...], said: str) -> None:
    run("collect", "world", "--cache", "cache", *flags).says(said)
    assert not Path("cache").exists()


def test_an_unknown_teacher_and_an_empty_prompt_file_are_named(run: Run) -> None:
    run("collect", "wrold").says("unknown teacher 'wrold': give world, loose-world or a folder of clips")
    Path("prompts.txt").write_text("\n\n")
    run("collect", "world", "--prompts", "prompts.txt").says("prompts.txt has no prompt in it")


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "night.mp4 is an empty file"), (b"no video at all", "night.mp4 cannot be read")]
)
def test_an_empty_or_corrupt_video_is_named_and_can_be_mended(run: Run, clips: Path, content: bytes, said: str) -> None:
    good = (clips / "night.mp4").read_bytes()
    (clips / "night.mp4").write_bytes(content)
    distil_folder(run, clips).says(said)
    assert not {"report.json", "clip.mp4", "student/config.json"} & files(Path("run"))
    (clips / "night.mp4").write_bytes(good)
    assert distil_folder(run, clips).status == 0


def test_a_caption_without_a_clip_and_a_clip_without_a_caption_are_named(run: Run, clips: Path) -> None:
    (clips / "noon.txt").write_text("a wall at noon")
    distil_folder(run, clips).says("noon.mp4, which does not exist; add the clip or drop the caption")
    (clips / "noon.txt").unlink()
    (clips / "day.txt").unlink()
    distil_folder(run, clips).says("day.mp4 has no caption")
    assert not Path("run").exists()


def test_a_clip_shorter_than_asked_says_how_many_frames_it_has(run: Run, clips: Path) -> None:
    distil_folder(run, clips, "geometry.frames=12").says("at 8 frames a second it has 8 frames and 12 were asked for")
    assert not {"report.json", "clip.mp4", "student/config.json"} & files(Path("run"))


def test_a_size_that_is_not_whole_patches_is_refused_before_anything_is_asked(run: Run, clips: Path) -> None:
    distil_folder(run, clips, "geometry.height=30").says("height 30 is not divisible by 16")
    assert not Path("run").exists()


def test_a_cache_of_another_version_is_left_alone(run: Run, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("streamstill.teachers.store.FORMAT", 99)
        collected(run)
    said = "the clip store cache has format version 99 and this streamstill reads version 1"
    run("collect", "world", "--count", 2, "--size", TINY_SIZE, "--cache", "cache").says(said)
    train(run, student).says(said)
    assert not Path("taught").exists()


def test_a_checkpoint_of_another_version_is_left_alone(
    run: Run, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected(run)
    with monkeypatch.context() as newer:
        newer.setattr("streamstill.training.checkpoint.FORMAT", 99)
        assert train(run, student).status == 0
    before = {path: path.read_bytes() for path in Path("taught/training").rglob("*.safetensors")}
    train(run, student).says("has format version 99, this streamstill reads version 1")
    assert before == {path: path.read_bytes() for path in before}


def test_a_truncated_student_is_refused(run: Run, student: Path) -> None:
    broken = Path("broken")
    shutil.copytree(student, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    collected(run)
    for told in (stream(run, broken), train(run, broken)):
        told.says("broken/model.safetensors is damaged or cut short")
    assert not Path("v.mp4").exists()
    assert not Path("taught").exists()


def test_a_truncated_checkpoint_is_not_silently_started_over(run: Run, student: Path) -> None:
    collected(run)
    train(run, student)
    (state,) = Path("taught").rglob("state.safetensors")
    state.write_bytes(state.read_bytes()[:-10])
    train(run, student).says("state.safetensors is damaged or was cut off")


def test_a_full_disk_while_caching_keeps_what_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import lance

    collected(run)

    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(lance, "write_dataset", full)
        told = run("collect", "world", "--count", 20, "--size", TINY_SIZE, "--cache", "cache")
    told.says("the disk is full; what was there before is safe: free some space and run the same command again")
    assert "Errno" not in told.err
    assert len(ClipStore.open(Path("cache"))) == 6
    collected(run, count=20)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_a_step_that_does_not_fit_into_memory_says_what_to_lower(
    run: Run, student: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def too_large(self: FlowMatching, player: str, micro: object) -> None:
        raise error

    collected(run)
    with monkeypatch.context() as small:
        small.setattr(FlowMatching, "loss", too_large)
        train(run, student).says("step 0 did not fit into memory; lower the batch size")
    assert not Path("taught/student").exists()
    assert train(run, student, "--set", "batch=1").status == 0


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 TiB"), RuntimeError("CUDA out of memory. Tried")])
def test_a_stream_that_does_not_fit_into_memory_says_what_to_lower(
    run: Run, student: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def too_large(self: Student, prompts: object) -> None:
        raise error

    monkeypatch.setattr(Student, "encode_prompts", too_large)
    told = stream(run, student)
    told.says("lower the")
    assert "memory" in told.err or "allocate" in told.err
    assert not Path("v.mp4").exists()


def test_a_bug_keeps_its_traceback(run: Run, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Student, prompts: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(Student, "encode_prompts", broken)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        stream(run, student)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--frames", "0"), "--frames must be at least 1, got 0"),
        (("--steps", "0"), "a sampler needs steps >= 1"),
        (("--out", "v.avi"), "--out must be the name of an mp4 file, got v.avi"),
        (("--prompt", "?!", "--frames", "8"), "the prompt '?!' has no word in it"),
        (("--prompt", "A blue ball is dropped."), "2 prompts need at least 8 frames, for a prompt holds for a whole"),
    ],
)
def test_a_stream_that_cannot_be_made_says_why(run: Run, student: Path, flags: tuple[str, ...], said: str) -> None:
    stream(run, student, *flags).says(said)
    assert not list(Path.cwd().iterdir())


def test_a_folder_that_is_no_student_is_named(run: Run) -> None:
    stream(run, Path("nowhere")).says("nowhere is not a student: it has no config.json; give the folder that a run")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--objective", "adf"),
            "unknown objective 'adf': choose one of flow-matching, afd, gan, dmd, reward-weighted; ",
        ),
        (("--objective", "dmd"), "give --set score=FOLDER, a student that sees whole clips"),
        (("--cache", "nowhere"), "there is no teacher cache at nowhere; make one with `streamstill collect"),
        (("--steps", "0"), "steps, checkpoint_every and log_every must be at least 1"),
        (("--set", "batch=0"), "batch must be at least 1, got 0"),
        (("--set", "methods.batch=3"), "methods.batch is not read here; set batch in its place"),
        (("--set", "methods.sft.optim.lr=1"), "methods.sft is not read here; set flow_matching in its place"),
        (
            ("--objective", "afd", "--steps", "10"),
            "the first 10 steps of afd teach the discriminator only, and 10 were",
        ),
        (("--objective", "afd", "--set", "answers=0"), "answers must be at least 1, got 0"),
    ],
)
def test_a_training_that_cannot_start_says_why_and_writes_nothing(
    run: Run, student: Path, flags: tuple[str, ...], said: str
) -> None:
    collected(run)
    train(run, student, *flags).says(said)
    assert not Path("taught").exists()


def test_a_cache_of_two_teachers_wants_one_to_be_chosen(run: Run, student: Path) -> None:
    collected(run)
    assert run("collect", "loose-world", "--count", 2, "--size", TINY_SIZE, "--cache", "cache").status == 0
    train(run, student).says("cache has clips of the teachers ['loose world', 'world']; choose one with --set teacher=")
    assert train(run, student, "--set", "teacher=loose world").status == 0


def test_a_cache_without_clips_of_the_students_size_says_which_to_collect(run: Run, student: Path) -> None:
    assert run("collect", "world", "--count", 2, "--size", "8x32x32@8", "--cache", "cache").status == 0
    told = train(run, student)
    told.says("cache has 2 clips and none in the student's size 8x16x16@8; collect some with --size 8x16x16@8")
    assert not Path("taught").exists()
