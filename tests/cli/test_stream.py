"""``streamstill stream`` with a first frame, and in one piece."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streamstill.codec.light_decoder import LightCodec
from streamstill.codec.patch import PatchCodec
from streamstill.codec.video import to_frames
from streamstill.flow.times import Sampling
from streamstill.media import read_clip, write_clip
from streamstill.streaming.session import Session, still_opening
from streamstill.streaming.whole import sample_whole
from streamstill.student.student import Student
from streamstill.types import Clip, Frames
from tests.cli.conftest import Ended, Run, saved_light_decoder

PROMPT = "A red ball is dropped."


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A PNG of the tiny student's size."""
    Image.fromarray(colours().transpose(1, 2, 0)).save(tmp_path / "picture.png")
    return Path("picture.png")


def colours() -> Frames:
    c, y, x = np.ogrid[:3, :16, :16]
    return (10 * x + 5 * y + 20 * c).astype(np.uint8)


def stream(run: Run, student: Path, *flags: object, frames: int = 10) -> Ended:
    return run("stream", student, "--prompt", PROMPT, "--frames", frames, "--out", "v.mp4", *flags)


def frames_of(path: str) -> Frames:
    return read_clip(Path(path)).frames_FCHW


def expect(frames_FCHW: Frames) -> None:
    """``v.mp4`` holds these frames."""
    write_clip(Path("expected.mp4"), Clip(frames_FCHW=frames_FCHW, fps=8))
    assert np.array_equal(frames_of("v.mp4"), frames_of("expected.mp4"))


def test_a_stream_begins_with_the_first_frame_and_goes_on_from_it(run: Run, student: Path, picture: Path) -> None:
    told = stream(run, student, "--first-frame", picture)
    assert told.status == 0, told.err
    assert "10 frames in" in told.out
    session = Session(Student.from_pretrained(student), PROMPT, sampling=Sampling(), seed=0, first_frame=colours())
    expect(np.concatenate([session.next_chunk() for _ in range(3)])[:10])


def test_a_first_frame_of_any_size_is_fitted(run: Run, student: Path) -> None:
    Image.new("RGB", (90, 40), (200, 100, 50)).save("wide.jpg")
    assert stream(run, student, "--first-frame", "wide.jpg").status == 0
    assert frames_of("v.mp4").shape == (10, 3, 16, 16)


@pytest.mark.parametrize(("frames", "flags"), [(7, []), (8, ["--guidance", 3]), (9, ["--steps", 6, "--seed", 2])])
def test_a_clip_in_one_piece_is_what_sample_whole_makes(
    run: Run, student: Path, frames: int, flags: list[object]
) -> None:
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    told = stream(run, student, "--whole", *flags, frames=frames)
    assert told.status == 0, told.err
    assert f"{frames} frames in one piece in" in told.out
    maker = Student.from_pretrained(student)
    with torch.no_grad():
        latents = sample_whole(
            maker.network,
            maker.encode_prompts([PROMPT]),
            frames=(frames + 1) // 2,
            latent_shape=maker.latent_shape[1:],
            sampling=Sampling(steps=int(str(given.get("--steps", 4)))),
            generator=torch.Generator().manual_seed(int(str(given.get("--seed", 0)))),
            guidance=float(str(given.get("--guidance", 1))),
            empty_text_BLD=maker.encode_nothing(1),
        )
    expect(to_frames(maker.codec.decode(latents)[0][0, :frames]))


def test_a_clip_in_one_piece_can_begin_with_a_picture_too(run: Run, student: Path, picture: Path) -> None:
    assert stream(run, student, "--whole", "--first-frame", picture).status == 0
    maker = Student.from_pretrained(student)
    still = to_frames(maker.codec.decode(still_opening(maker, colours(), device=maker.device))[0][0])
    assert all(np.array_equal(frame, colours()) for frame in still)
    write_clip(Path("still.mp4"), Clip(frames_FCHW=still, fps=8))
    assert np.abs(frames_of("v.mp4")[:4].astype(int) - frames_of("still.mp4")).mean() < 4
    said = "--first-frame fills 4 frames; --frames must be more than that, got 4"
    stream(run, student, "--whole", "--first-frame", picture, frames=4).says(said)


def test_a_light_decoder_decodes_what_the_student_makes(run: Run, student: Path, light_decoder: Path) -> None:
    told = stream(run, student, "--light-decoder", light_decoder)
    assert told.status == 0, told.err
    maker = Student.from_pretrained(student)
    codec = LightCodec.from_pretrained(light_decoder, maker.codec)
    session = Session(maker, PROMPT, sampling=Sampling(), seed=0, codec=codec)
    expect(np.concatenate([session.next_chunk() for _ in range(3)])[:10])
    light = frames_of("v.mp4")
    stream(run, student)
    assert not np.array_equal(frames_of("v.mp4"), light)


def test_a_clip_in_one_piece_is_decoded_by_the_light_decoder_too(
    run: Run, student: Path, light_decoder: Path, picture: Path
) -> None:
    assert stream(run, student, "--whole", "--light-decoder", light_decoder, "--first-frame", picture).status == 0
    maker = Student.from_pretrained(student)
    light = LightCodec.from_pretrained(light_decoder, maker.codec)
    opening = still_opening(maker, colours(), device=maker.device)
    with torch.no_grad():
        latents = sample_whole(
            maker.network,
            maker.encode_prompts([PROMPT]),
            frames=5,
            latent_shape=maker.latent_shape[1:],
            sampling=Sampling(),
            generator=torch.Generator().manual_seed(0),
            empty_text_BLD=maker.encode_nothing(1),
            opening_BFCHW=opening,
        )
        expect(to_frames(light.decode(latents)[0][0]))


def test_a_light_decoder_that_cannot_serve_is_one_sentence(
    run: Run, student: Path, light_decoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("others")
    run_folder = elsewhere / "run"
    saved_light_decoder(run_folder / "light_decoder", PatchCodec())
    other = saved_light_decoder(elsewhere / "other", PatchCodec(size=2))
    said = {
        Path("nowhere"): "there is no folder nowhere with a light decoder; `streamstill codec distill` makes one",
        elsewhere: f"{elsewhere} is no light decoder: it has no config.json",
        student: "describes no light decoder",
        run_folder: f"{run_folder} is the run that made a light decoder; give {run_folder / 'light_decoder'}",
        other: "this light decoder was made for latents of (24, (2, 2, 2), 2) (channels, compression, first frames)",
    }
    for folder, sentence in said.items():
        stream(run, student, "--light-decoder", folder).says(sentence)
        run("bench", student, "--light-decoder", folder).says(sentence)
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--first-frame", "nowhere.png"), "there is no picture nowhere.png; check the name"),
        (("--whole", "--first-frame", "nowhere.png"), "there is no picture nowhere.png; check the name"),
        (("--guidance", "3"), "--guidance belongs to --whole; a stream is made in few steps and without guidance"),
        (("--whole", "--prompt", "A blue ball."), "--whole makes a clip of one prompt, got 2; leave it out to stream"),
        (("--whole", "--guidance", "nan"), "guidance must be a finite number, got nan"),
        (("--whole", "--frames", "0"), "--frames must be at least 1, got 0"),
        (("--whole", "--steps", "0"), "a sampler needs steps >= 1"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(
    run: Run, student: Path, flags: tuple[str, ...], said: str
) -> None:
    stream(run, student, *flags).says(said)
    assert not list(Path.cwd().iterdir())


def test_a_first_frame_that_is_no_picture_is_named(run: Run, student: Path) -> None:
    Path("bad.png").write_bytes(b"no picture at all")
    stream(run, student, "--first-frame", "bad.png").says("the picture bad.png cannot be read")
    assert not Path("v.mp4").exists()
