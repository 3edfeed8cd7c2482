"""The commands as a user types them, on input that is right."""

import importlib.util
import json
import re
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np
import pytest

from streamstill.flow.times import Sampling
from streamstill.media import read_clip, write_clip
from streamstill.streaming.session import Session
from streamstill.student.student import Student
from streamstill.teachers import ClipStore
from streamstill.testing import tiny_student
from streamstill.types import Clip
from tests.cli.conftest import Run
from tests.recipes.tiny import files, read

COMMANDS = (
    "distill",
    "collect",
    "prompts",
    "codec",
    "student",
    "encode",
    "train",
    "stream",
    "drift",
    "bench",
    "search",
    "doctor",
)
TINY_SIZE = "8x16x16@8"


def collected(run: Run, count: int = 6) -> None:
    assert run("collect", "world", "--count", count, "--size", TINY_SIZE, "--cache", "cache").status == 0


def next_command(out: str) -> str:
    (line,) = [line for line in out.splitlines() if line.startswith("next: ")]
    return line.removeprefix("next: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(run: Run, name: str) -> None:
    told = run(name, "--help")
    assert told.status == 0
    assert re.search(rf"Example: streamstill {name}\b", told.out)


def test_the_help_lists_every_command(run: Run) -> None:
    told = run("--help")
    assert told.status == 0
    assert all(name in told.out for name in COMMANDS)


@pytest.mark.parametrize("words", [("dance",), ("stream", "somewhere"), ("train", "s", "--steps", "many")])
def test_a_command_that_cannot_be_parsed_says_how_to_write_it(run: Run, words: tuple[str, ...]) -> None:
    told = run(*words)
    assert told.status == 2
    assert "Usage: " in told.err
    assert "Traceback" not in told.err


def test_collect_then_train_then_stream(run: Run, student: Path) -> None:
    told = run("collect", "world", "--count", 6, "--size", TINY_SIZE, "--cache", "cache")
    assert "6 clips, 6 of them new -> cache" in told.out
    assert next_command(told.out) == "streamstill train STUDENT --cache cache"

    words = ("train", student, "--cache", "cache", "--steps", 3, "--out", "taught", "--set", "batch=2")
    told = run(*words)
    assert told.status == 0
    assert next_command(told.out) == 'streamstill stream taught/student --prompt "..."'
    assert Student.from_pretrained("taught/student").fingerprint != tiny_student().fingerprint

    told = run("stream", "taught/student", "--prompt", "A red ball is dropped.", "--frames", 10, "--out", "v/it.mp4")
    assert told.status == 0
    assert re.search(r"10 frames in [\d.]+ s: \d+ frames a second, first frame after \d+ ms, \d+ threads", told.out)
    geometry = read_clip(Path("v/it.mp4")).geometry
    assert (geometry.frames, geometry.height, geometry.width, geometry.fps) == (10, 16, 16, 8)


def test_collecting_again_asks_nothing_twice_and_more_asks_the_rest(run: Run) -> None:
    collected(run)
    assert (
        "6 clips, 0 of them new" in run("collect", "world", "--count", 6, "--size", TINY_SIZE, "--cache", "cache").out
    )
    assert (
        "9 clips, 3 of them new" in run("collect", "world", "--count", 9, "--size", TINY_SIZE, "--cache", "cache").out
    )
    assert len(ClipStore.open(Path("cache"))) == 9


def test_the_worlds_own_prompts_never_give_one_clip_twice(run: Run) -> None:
    collected(run, 110)  # more than it has prompts
    store = ClipStore.open(Path("cache"))
    clips = [clip.frames_FCHW.tobytes() for _, clip in store.read(store.find())]
    assert len(set(clips)) == 110


def test_collect_asks_the_prompts_of_a_file_round_by_round_with_new_seeds(run: Run) -> None:
    Path("prompts.txt").write_text("A red ball is dropped.\n\n  A blue box is dropped.  \n")
    words = ("--prompts", "prompts.txt", "--count", 5, "--size", TINY_SIZE, "--seed", 7, "--cache", "cache")
    assert run("collect", "loose-world", *words).status == 0
    asked = [
        (entry.teacher, entry.request.prompt, entry.request.seed) for entry in ClipStore.open(Path("cache")).find()
    ]
    red, blue = "A red ball is dropped.", "A blue box is dropped."
    assert asked == [("loose world", *row) for row in ((red, 7), (blue, 7), (red, 8), (blue, 8), (red, 9))]


def test_without_a_count_every_prompt_is_asked_once(run: Run) -> None:
    Path("prompts.txt").write_text("A red ball is dropped.\nA blue box is dropped.\n")
    told = run("collect", "world", "--prompts", "prompts.txt", "--size", TINY_SIZE, "--cache", "cache")
    assert "2 clips, 2 of them new" in told.out


def test_a_run_says_how_many_steps_the_discriminator_learns_alone(run: Run, student: Path) -> None:
    collected(run)
    flags = ["--set", "afd.warmup_turns=1", "--set", "afd.adversary.rollouts_per_prompt=2", "--set", "answers=1"]
    told = run("train", student, "--cache", "cache", "--objective", "afd", "--steps", 2, "--out", "taught", *flags)
    assert "the first 1 of 2 steps teach the discriminator only" in told.out


def test_afd_can_be_trained_by_itself(run: Run, student: Path) -> None:
    collected(run)
    flags = ["--set", "afd.warmup_turns=1", "--set", "afd.adversary.rollouts_per_prompt=2", "--set", "answers=1"]
    told = run("train", student, "--cache", "cache", "--objective", "afd", "--steps", 2, "--out", "taught", *flags)
    assert told.status == 0
    lines = Path("taught/training/metrics.jsonl").read_text().splitlines()
    assert ["student/loss" in line for line in lines] == [False, True]


def test_autocast_trains_the_same_student_in_bfloat16(run: Run, student: Path) -> None:
    collected(run, 4)
    losses = []
    for word in ("false", "true"):
        flags = ("--steps", 2, "--out", word, "--set", "batch=2", "--set", f"autocast={word}")
        assert run("train", student, "--cache", "cache", *flags).status == 0
        lines = Path(word, "training", "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["student/loss"] for line in lines])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_training_again_goes_on_and_other_settings_are_refused(run: Run, student: Path) -> None:
    collected(run)
    words = ("train", student, "--cache", "cache", "--out", "taught", "--set", "batch=2", "--steps", 2)
    assert run(*words).status == 0
    held = Path("taught/student/model.safetensors").read_bytes()
    assert run(*words).status == 0
    assert Path("taught/student/model.safetensors").read_bytes() == held
    run(*words, "--set", "seed=1").says("taught holds a run of other settings: seed=0 (now 1)")
    run("train", student, "--cache", "cache/../cache", "--out", "taught", "--set", "batch=2", "--steps", 2).says(
        "cache=cache (now cache/../cache)"
    )


def test_a_run_of_dmd_belongs_to_the_weights_of_its_score(run: Run, student: Path) -> None:
    collected(run)
    tiny_student(seed=1).save_pretrained("score")
    flags = ("--set", "score=score", "--set", "prompts_per_update=2", "--set", "answers=1")
    words = ("train", student, "--cache", "cache", "--objective", "dmd", "--steps", 1, "--out", "taught", *flags)
    assert run(*words).status == 0
    assert run(*words).status == 0
    tiny_student(seed=2).save_pretrained("score")
    run(*words).says("taught holds a run of other settings: score_weights=")


def test_more_steps_in_the_same_folder_make_what_as_many_at_once_make(run: Run, student: Path) -> None:
    collected(run)
    words = ("train", student, "--cache", "cache", "--set", "batch=2")
    for out, steps in (("once", 4), ("taught", 2), ("taught", 4)):
        assert run(*words, "--out", out, "--steps", steps).status == 0
    assert Path("taught/student/model.safetensors").read_bytes() == Path("once/student/model.safetensors").read_bytes()
    run(*words, "--out", "taught", "--steps", 3).says("taught holds a run of steps=4 and 3 were asked for")


def test_two_prompts_share_the_frames_of_a_stream(run: Run, student: Path) -> None:
    first, second = "A red ball is dropped.", "A blue ball is thrown to the left."
    words = ("--prompt", first, "--prompt", second, "--frames", 16, "--out", "both.mp4")
    assert run("stream", student, *words).status == 0
    session = Session(Student.from_pretrained(student), first, sampling=Sampling(), seed=0)
    chunks = [session.next_chunk(), session.next_chunk()]
    session.prompt = second
    chunks += [session.next_chunk(), session.next_chunk()]
    write_clip(Path("expected.mp4"), Clip(frames_FCHW=np.concatenate(chunks), fps=8))
    both, expected = (read_clip(Path(name)).frames_FCHW for name in ("both.mp4", "expected.mp4"))
    assert np.array_equal(both, expected)


def test_a_stream_is_fixed_by_its_seed_and_its_sampling_steps(run: Run, student: Path) -> None:
    def made(*flags: object) -> bytes:
        assert run("stream", student, "--prompt", "A red ball.", "--frames", 4, "--out", "v.mp4", *flags).status == 0
        return Path("v.mp4").read_bytes()

    assert made() == made("--steps", 4)
    assert len({made(), made("--seed", 1), made("--steps", 2)}) == 3


def test_the_next_command_of_distill_can_be_typed(run: Run, student: Path) -> None:
    flags = [
        word for setting in ("frames=8", "height=16", "width=16", "fps=8") for word in ("--set", f"geometry.{setting}")
    ]
    told = run("distill", "base", *flags, "--set", "steps=1", "--set", "batch=1", "--set", "prompts=4")
    assert told.status == 0
    words = re.findall(r'"[^"]+"|\S+', next_command(told.out))
    assert run(*(word.strip('"') for word in words[1:]), "--frames", 4).status == 0
    assert "stream.mp4" in files(Path("runs"))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is an extra")
def test_metrics_can_also_go_to_tensorboard(run: Run, student: Path) -> None:
    collected(run)
    words = ("train", student, "--cache", "cache", "--out", "taught", "--set", "batch=2", "--steps", 1, "--track")
    assert run(*words).status == 0
    assert [path for path in Path("taught/tensorboard").iterdir() if "tfevents" in path.name]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_a_missing_tracker_says_how_to_install_it_and_nothing_is_begun(run: Run, student: Path) -> None:
    collected(run)
    words = ("train", student, "--cache", "cache", "--out", "taught", "--steps", 1, "--track")
    run(*words).says('TensorBoard is not installed; run: pip install "streamstill[track]"')
    assert not Path("taught").exists()


def test_the_resolved_config_of_a_run_is_kept_beside_it(run: Run, student: Path) -> None:
    collected(run)
    run("train", student, "--cache", "cache", "--out", "taught", "--set", "flow_matching.optim.lr=0.5", "--steps", 1)
    held = read(Path("taught/recipe.json"))
    assert (held["recipe"], held["config"]["flow_matching"]["optim"]["lr"]) == ("train", 0.5)
    assert (held["inputs"]["cache"], held["config"]["student"]) == ("cache", str(student))


@pytest.mark.filterwarnings("ignore")  # whatever an unsuitable torchvision says
def test_the_doctor_names_every_part_and_leaves_nothing(run: Run) -> None:
    told = run("doctor")
    for part in ("versions", "machine", "disk", "torchvision", "video", "teacher cache", "student"):
        assert re.search(rf"^(ok|!!)  {part}", told.out, re.MULTILINE)
    assert re.search(r"^ok  video +wrote and read 8 frames of H.264$", told.out, re.MULTILINE)
    assert re.search(r"^ok  teacher cache +a clip went in and came out$", told.out, re.MULTILINE)
    assert files(Path.cwd()) == set()
    sound = "!!  " not in told.out
    assert (told.status == 0) is sound
    assert ("next: streamstill distill quickstart" in told.out) is sound


@pytest.mark.skipif(
    not (package_files("streamstill.assets") / "nano_base" / "config.json").is_file(), reason="no base yet"
)
def test_the_doctor_finds_the_shipped_base(run: Run) -> None:
    assert re.search(r"^ok  student +shipped base student, [\d,]+ parameters$", run("doctor").out, re.MULTILINE)
