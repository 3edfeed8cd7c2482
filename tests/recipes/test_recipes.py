"""Every recipe, whole, at tiny size: what it leaves, that it goes on where it stopped, and what it refuses."""

import io
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file

from streamstill.media import read_clip, write_clip
from streamstill.recipes import Quickstart, run_base, run_folder, run_quickstart
from streamstill.recipes.base import ACTIONS, OPEN
from streamstill.recipes.quickstart import held_out, taught, watched
from streamstill.report.comparison import METRICS, as_json, judged
from streamstill.student.student import Student
from streamstill.teachers import ClipStore
from streamstill.training.health import read_history
from streamstill.training.health_vitals import START
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import World, parse
from tests.recipes import tiny
from tests.recipes.tiny import QUICKSTART, as_flags, command, files, read, saved_student, streamstill

ARTEFACTS = {
    "before_after.mp4",
    "strip.png",
    "report.json",
    "recipe.json",
    "seconds.json",
    "student/model.safetensors",
    "student/config.json",
}
LONGER = "warm.steps=40"  # long enough to be interrupted


def quiet() -> Console:
    return Console(quiet=True)


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "student/model.safetensors").items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_student(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "run"
    run_quickstart(tiny.quickstart(base), out, quiet())
    return out


def test_quickstart_leaves_a_video_a_strip_a_student_and_a_report(finished: Path) -> None:
    left = {name for name in files(finished) if not name.startswith(("collect/", "warm/", "afd/"))}
    assert left == ARTEFACTS
    assert not [name for name in files(finished) if name.endswith(".partial")]
    shown = read_clip(finished / "before_after.mp4")
    assert shown.geometry.frames == 4 * 8
    assert (finished / "strip.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert Student.from_pretrained(finished / "student").config.geometry.height == 16


def test_the_report_has_the_promised_shape(finished: Path) -> None:
    report = read(finished / "report.json")
    assert set(report) == {"metrics", "seconds", "environment"}
    assert list(report["metrics"]) == sorted(("teacher", "base", "warm", "student"))
    for row in report["metrics"].values():
        assert {"physics_error", "dynamic_degree", "prompt_obedience", "sharpness"} < set(row) == set(METRICS)
        for value in row.values():
            assert set(value) == {"mean", "low", "high", "n"}
            assert value["n"] == 0 or value["low"] <= value["mean"] <= value["high"]
    assert set(report["seconds"]) == {"collect", "warm", "afd", "evaluate"}
    assert {"torch", "python", "threads", "device"} <= set(report["environment"])


def test_every_stage_changed_the_student(finished: Path, base: Path) -> None:
    student, start = load_file(finished / "student/model.safetensors"), load_file(base / "model.safetensors")
    assert student.keys() == start.keys()
    assert not np.array_equal(student["network.head.weight"], start["network.head.weight"])
    for stage in ("warm", "afd"):
        steps = [line for line in (finished / stage / "metrics.jsonl").read_text().splitlines() if line]
        assert len(steps) == {"warm": 4, "afd": 2}[stage]


def test_the_discriminator_learns_at_the_end_of_the_warm_up(finished: Path) -> None:
    steps = [json.loads(line) for line in (finished / "warm" / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps if "discriminator/loss" in step] == [2]  # of 0 to 3: one turn, every second


def test_the_same_command_again_trains_nothing_and_reports_the_same(finished: Path, base: Path) -> None:
    before, held = read(finished / "report.json"), weights(finished)
    states = {path: path.stat().st_mtime_ns for path in finished.glob("*/training/state.safetensors")}
    run_quickstart(tiny.quickstart(base), finished, quiet())
    assert read(finished / "report.json")["metrics"] == before["metrics"]
    assert weights(finished) == held
    assert states == {path: path.stat().st_mtime_ns for path in states}


def test_other_settings_in_the_same_folder_are_refused(finished: Path, base: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a run of other settings: seed=0 \(now 1\)"):
        run_quickstart(tiny.quickstart(base, "seed=1"), finished, quiet())


def test_another_base_in_the_same_place_is_noticed(finished: Path, base: Path) -> None:
    held = {path: path.read_bytes() for path in base.iterdir()}
    try:
        saved_student(base, seed=9)
        with pytest.raises(ValueError, match=r"holds a run of other settings: base_weights="):
            run_quickstart(tiny.quickstart(base), finished, quiet())
    finally:
        for path, content in held.items():
            path.write_bytes(content)


def test_a_size_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, base: Path) -> None:
    for run in (
        lambda: run_quickstart(tiny.quickstart(base, "geometry.height=30"), tmp_path / "out", quiet()),
        lambda: run_base(tiny.base("geometry.height=30"), tmp_path / "out", quiet()),
    ):
        with pytest.raises(ValueError, match=r"height 30 is not divisible by 8, .*; use 24 or 32"):
            run()
    assert not (tmp_path / "out").exists()


def test_the_teachers_clips_are_all_different() -> None:
    """Two wordings of one scene with one seed are one clip, so no seed may come twice."""
    config = Quickstart()
    requests = taught(config)
    assert len(requests) == config.clips
    assert len({World().render(request).frames_FCHW.tobytes() for request in requests}) == config.clips
    prompts = [request.prompt for request in requests]
    assert [prompts.count(prompt) for prompt in set(prompts)] == [config.clips_per_prompt] * (config.clips // 2)


@pytest.mark.parametrize("actions", [ACTIONS, OPEN])
def test_whoever_is_taught_watched_and_judged_on_says_what_was_asked(actions: tuple[str, ...]) -> None:
    config = Quickstart(actions=actions)
    parts = [{request.prompt for request in part(config)} for part in (taught, watched, held_out)]
    assert {parse(prompt).action for part in parts for prompt in part} == set(actions)
    assert len(set.union(*parts)) == sum(len(part) for part in parts)
    assert [len(part) for part in parts[1:]] == [config.watched_prompts, config.held_out_clips]


def test_held_out_prompts_and_seeds_were_not_taught(finished: Path, base: Path) -> None:
    known = ClipStore.open(finished / "collect" / "cache").find()  # and what AFD is watched on
    asked = held_out(tiny.quickstart(base))
    assert (len(known), len(asked)) == (8 + 2, 6)
    assert not {request.prompt for request in asked} & {entry.request.prompt for entry in known}
    assert not {request.seed for request in asked} & {entry.request.seed for entry in known}
    assert held_out(tiny.quickstart(base)) == asked


def test_afd_is_watched_on_prompts_that_nobody_learns_from(finished: Path, base: Path) -> None:
    config = tiny.quickstart(base)
    own, judged_on = watched(config), {request.prompt for request in held_out(config)}
    kept = {(entry.request.prompt, entry.request.seed) for entry in ClipStore.open(finished / "collect/cache").find()}
    assert len({request.prompt for request in own}) == 2
    assert {(request.prompt, request.seed) for request in own} <= kept
    learned_from = {prompt for prompt, seed in kept if seed < config.clips}
    assert len(learned_from) == 4
    assert not {request.prompt for request in own} & (learned_from | judged_on)
    start, after = read_history(finished / "afd" / "health.jsonl")
    assert (start.step, after.step) == (START, 1)
    assert after.distance_to_start is not None
    assert after.distance_to_start > 0
    assert not (finished / "warm" / "health.jsonl").exists()


def test_the_health_of_afd_is_told_at_its_end_and_again(finished: Path, base: Path) -> None:
    said = io.StringIO()
    run_quickstart(tiny.quickstart(base), finished, Console(file=said, width=200))
    assert "  health: no alarm in 1 checkup\n" in said.getvalue()


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize("stage", ["collect", "warm"])
def test_ctrl_c_and_the_same_command_give_the_same_student_as_no_ctrl_c(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, stage: str
) -> None:
    out = tmp_path / "run"
    words = ["distill", "quickstart", "--out", str(out), *as_flags([*QUICKSTART, f"base={base}", LONGER])]
    with command(*words, cwd=tmp_path) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith({"collect": "collect: the", "warm": "warm: 1/40"}[stage]):
                break
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert errors.strip().splitlines()[-1] == "streamstill: stopped; the same command goes on from here"
    assert "Traceback" not in errors
    assert not {"report.json", "student/config.json"} & files(out)
    assert streamstill(monkeypatch, *words) == 0
    assert weights(out) == weights(whole)
    assert read(out / "report.json")["metrics"] == read(whole / "report.json")["metrics"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """The run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_quickstart(tiny.quickstart(base, LONGER), out, quiet())
    return out


def test_base_leaves_a_student_that_quickstart_can_start_from(tmp_path: Path) -> None:
    student = run_base(tiny.base(), tmp_path / "base", quiet())
    again = run_base(tiny.base(), tmp_path / "base", quiet())
    back = Student.from_pretrained(tmp_path / "base" / "student")
    for name, tensor in student.state_dict().items():
        assert np.array_equal(tensor, back.state_dict()[name])
        assert np.array_equal(tensor, again.state_dict()[name])
    assert 300_000 < sum(p.numel() for p in back.parameters()) <= 1_000_000
    with pytest.raises(ValueError, match="other settings: batch=2"):
        run_base(tiny.base("batch=1"), tmp_path / "base", quiet())


def check_folder_run(out: Path, report: dict[str, Any], prompts: set[str], clips: int) -> None:
    assert {"clip.mp4", "strip.png", "report.json", "student/model.safetensors", "student/config.json"} <= files(out)
    assert read_clip(out / "clip.mp4").geometry.frames == 8
    assert len(report["clips"]) == clips
    assert {row["prompt"] for row in report["clips"]} == prompts
    assert all(math.isfinite(row["psnr"]) and math.isfinite(row["psnr_grey"]) for row in report["clips"])
    assert report["psnr_mean"] == pytest.approx(np.mean([row["psnr"] for row in report["clips"]]))
    assert set(report["seconds"]) == {"collect", "warm", "afd", "evaluate"}


def test_folder_runs_on_real_clips(tmp_path: Path, real_clips: Path) -> None:
    report = run_folder(tiny.folder(), real_clips, tmp_path, quiet())
    rows = [json.loads(line) for line in (real_clips / "captions.jsonl").read_text().splitlines()]
    check_folder_run(tmp_path, report, {row["prompt"] for row in rows}, len(rows))


def painted(path: Path, grey: int, frames: int = 8) -> None:
    shade = np.full((frames, 3, 16, 32), grey, dtype=np.uint8)
    write_clip(path, Clip(frames_FCHW=shade, fps=8))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two clips with a caption each."""
    for name, grey in (("night", 20), ("day", 230)):
        painted(tmp_path / "clips" / f"{name}.mp4", grey)
        (tmp_path / "clips" / f"{name}.txt").write_text(f"a wall by {name}")
    return tmp_path / "clips"


def test_folder_resumes_and_knows_another_folder_from_its_own(tmp_path: Path, clips: Path) -> None:
    out = tmp_path / "run"
    first = run_folder(tiny.folder(), clips, out, quiet())
    check_folder_run(out, first, {"a wall by night", "a wall by day"}, 2)
    again = run_folder(tiny.folder(), clips, out, quiet())
    assert again["clips"] == first["clips"]
    (clips / "day.txt").write_text("a wall at noon")
    with pytest.raises(ValueError, match="holds a run of other settings: clips=folder/clips@"):
        run_folder(tiny.folder(), clips, out, quiet())


def test_a_mistake_that_stopped_the_collecting_can_be_mended_in_the_same_folder(tmp_path: Path, clips: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="it has 8 frames and 12 were asked for"):
        run_folder(tiny.folder("geometry.frames=12"), clips, out, quiet())
    assert not {"report.json", "student/config.json"} & files(out)
    run_folder(tiny.folder(), clips, out, quiet())
    assert "report.json" in files(out)


def test_a_metric_that_no_clip_has_is_null_in_the_report() -> None:
    """A still picture of an empty stage has no flight to judge when the prompt is a collision."""
    prompt = "A yellow ball hits a large red box."
    request = ClipRequest(prompt=prompt, seed=0, frames=8, height=32, width=32, fps=8)
    black = Clip(frames_FCHW=np.zeros((8, 3, 32, 32), dtype=np.uint8), fps=8)
    report = as_json({"teacher": judged([black], [request])}, {"collect": 1.0})
    assert report["metrics"]["teacher"]["physics_error"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert report["metrics"]["teacher"]["sharpness"]["n"] == 1
    assert report["seconds"] == {"collect": 1.0}


def test_base_goes_on_from_a_student_on_other_prompts(tmp_path: Path, base: Path) -> None:
    changes = ("steps=2", "prompts=8", f"start={base}", 'actions=["move"]')
    student = run_base(tiny.base(*changes), tmp_path / "out", quiet())
    assert student.config == Student.from_pretrained(base).config
    start = load_file(base / "model.safetensors")
    learnt = load_file(tmp_path / "out/student/model.safetensors")
    moved = [float((learnt[name].float() - start[name].float()).abs().max()) for name in start]
    assert 0 < max(moved) < 0.1  # two steps from where it was, and no fresh weights
    with pytest.raises(ValueError, match="preset, layout and sampling are those of fresh weights"):
        tiny.base(f"start={base}", "layout=LS")
