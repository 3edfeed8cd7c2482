"""The benchmark card: what it says, and that nothing is lost on the way to disk and back."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamstill.report.card import BenchmarkCard, Setting, Subject, machine, peak_memory_mib, read_card, write_card
from streamstill.streaming.timing import AtAge, Spread, Timing, TimingConfig


def flat(milliseconds: float) -> Spread:
    return Spread(median=milliseconds, low=milliseconds, high=milliseconds)


TIMING = Timing(
    chunk_frames=3,
    pass_ms=flat(20.0),
    loop_ms=flat(100.0),
    end_to_end_ms=flat(150.0),
    first_frame_ms=flat(90.0),
    first_frame_cold_ms=4321.0,
    at_age=(
        AtAge(age=5, chunk_ms=Spread(median=100.0, low=90.0, high=130.0), state_bytes=1_234_567),
        AtAge(age=1000, chunk_ms=Spread(median=110.0, low=91.0, high=140.0), state_bytes=1_234_567),
    ),
)
SUBJECT = Subject(
    name="phone",
    weights="random",
    layout="LSSL",
    parameters=1_000_000,
    flops=40_000_000_000,
    latents=(3, 16, 36, 64),
    pixels=(288, 512),
    frames_per_latent=4,
    decoder="SomeCodec",
)
SETTING = Setting(steps=4, dtype="float32", device="cpu", threads=2, compiled=False)


@pytest.fixture
def card() -> BenchmarkCard:
    return BenchmarkCard.made_now(
        subject=SUBJECT, setting=SETTING, policy=TimingConfig(ages=(5, 1000), rounds=7), timing=TIMING
    )


def test_figures_follow_from_times(card: BenchmarkCard) -> None:
    assert card.loop_fps == pytest.approx(120)  # 12 frames of video in 100 ms
    assert card.end_to_end_fps == pytest.approx(80)
    assert card.gflops_per_second == pytest.approx(2000)  # 40e9 in 20 ms
    assert card.timing.ratio == pytest.approx(1.1)
    assert card.timing.decode_share == pytest.approx(1 / 3)  # 50 of 150 ms


def test_the_json_is_read_back_as_it_was(card: BenchmarkCard, tmp_path: Path) -> None:
    beside = write_card(card, tmp_path / "new" / "card.json")
    assert read_card(tmp_path / "new" / "card.json") == card
    assert beside.read_text() == card.as_markdown()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"card.json", "card.md"}


def test_the_json_has_a_version_and_what_follows_from_the_card(card: BenchmarkCard) -> None:
    held = json.loads(json.dumps(card.as_json()))
    assert held["format"] == 1
    assert held["card"]["policy"] == {"ages": [5, 1000], "rounds": 7, "warmup_chunks": 3}
    assert held["derived"]["loop_fps"] == pytest.approx(120)
    assert held["derived"]["last_by_first_age"] == pytest.approx(1.1)
    assert held["derived"]["decode_share"] == pytest.approx(1 / 3)


def rows(markdown: str) -> dict[str, str]:
    table = [line.strip("| ").split(" | ", 1) for line in markdown.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in table}


def test_the_markdown_says_what_was_measured_and_how(card: BenchmarkCard) -> None:
    said = rows(card.as_markdown())
    assert said["network"] == "phone, random weights, 1,000,000 parameters, 40 GFLOP a velocity pass"
    assert said["video"] == "288x512 pixels, 4 frames a latent frame"
    assert said["chunk"] == "3 latent frames of 16x36x64, 4 steps"
    assert said["setting"] == "float32, cpu, 2 threads, not compiled"
    assert torch.__version__ in said["versions"]
    assert said["frames a second, network alone"] == "120"
    assert said["frames a second, decoded"] == "80"
    assert said["decode"] == "SomeCodec, 33.3% of end to end"
    assert said["first frame, prompt to frames"] == "90 ms, cold 4,321 ms"
    assert said["one velocity pass"] == "20 ms, 2,000 GFLOP/s"
    assert said["5"] == "100 | 90 .. 130 | 1,234,567"
    assert said["1000"] == "110 | 91 .. 140 | 1,234,567"
    assert "Last age by first: 1.100. Medians of 7 rounds after a cold chunk and 3 to warm up" in card.as_markdown()


def test_what_was_not_measured_is_not_claimed(card: BenchmarkCard, tmp_path: Path) -> None:
    subject = replace(SUBJECT, flops=None, decoder="not measured, no codec for these latents is installed")
    bare = replace(card, subject=subject, timing=replace(TIMING, end_to_end_ms=None), peak_memory_mib=None)
    said = rows(bare.as_markdown())
    assert said["decode"] == "not measured, no codec for these latents is installed"
    assert bare.as_json()["derived"]["decode_share"] is None
    assert "frames a second, decoded" not in said
    assert said["network"].endswith("not counted")
    assert said["one velocity pass"] == "20 ms"
    assert said["peak memory"].startswith("unknown")
    assert "first frame, prompt to latents" in said
    write_card(bare, tmp_path / "card.json")
    assert read_card(tmp_path / "card.json") == bare


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged"),
        ('{"format": 2, "card": {}}', "has format 2, this version of streamstill reads format 1"),
        ("[]", "has format None"),
        ('{"format": 1}', "holds no card"),
        ('{"format": 1, "card": {"speed": 3}}', "has no field"),
        ('{"format": 1, "card": {}}', "is incomplete"),
    ],
)
def test_another_file_is_refused_with_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_card(path)


def test_a_card_that_cannot_be_written_leaves_nothing_partial(
    card: BenchmarkCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_card(card, tmp_path / "card.json")
    assert not list(tmp_path.iterdir())


def test_the_machine_has_a_name_and_the_process_a_size() -> None:
    found = machine("cpu")
    assert found["device_name"]
    assert set(found) >= {"streamstill", "torch", "python", "cores", "system", "machine"}
    assert "device" not in found
    used = peak_memory_mib("cpu")
    assert used is None or 50 < used < 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's own number is taken")
def test_the_peak_is_the_processs_own_and_not_that_of_who_started_it() -> None:
    ballast = b"x" * (600 * 2**20)
    code = "from streamstill.report.card import peak_memory_mib; print(peak_memory_mib('cpu'))"
    here = peak_memory_mib("cpu")
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(ballast) == 600 * 2**20
    assert here is not None
    assert here > 700
    assert float(child.stdout) < here - 300
