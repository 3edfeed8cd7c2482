"""A pipeline opened: its velocity in our convention makes its own latents again, and its latents its own pixels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamstill.flow.samplers import euler
from streamstill.teachers import require_open
from streamstill.teachers.pipelines.families import OpenForm, open_form
from streamstill.teachers.pipelines.opened import OpenPipelineTeacher, pipeline_teacher
from streamstill.teachers.pipelines.question import asking
from streamstill.types import Geometry
from tests.teachers.pipelines.asking import OTHER, PROMPT, SIZE, Saved, config_of, picture, request

OPEN = ["wan", "wan-of-two", "wan-image", "ltx", "hunyuan"]


def opened(saved: Saved, family: str, **changes: Any) -> OpenPipelineTeacher:
    if family == "wan-image":
        changes = {"image": picture(saved(family).parent / "first.png"), **changes}
    teacher = pipeline_teacher(config_of(saved(family), **changes))
    assert isinstance(teacher, OpenPipelineTeacher)
    return teacher


def noise_of(teacher: OpenPipelineTeacher, seed: int = 0) -> Tensor:
    """What the pipeline itself begins with: drawn with the channels first."""
    frames, *rest = teacher.latent_shape
    shape = (1, rest[0], frames, *rest[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).transpose(1, 2)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("family", OPEN)
def test_our_sampler_along_the_pipelines_times_makes_its_latents(saved: Saved, family: str, guidance: float) -> None:
    further = {"true_cfg_scale": guidance} if family == "hunyuan" else {}  # its guidance_scale is one more input
    arguments = {"max_sequence_length": 48, **further}
    teacher = opened(saved, family, guidance=guidance, negative_prompt="blurry", arguments=arguments)
    wanted = teacher.latents([request(prompt=OTHER)])
    times = teacher.clips.pipe.scheduler.sigmas
    assert times[0] == 1
    assert times[-1] == 0
    assert len(times) == 4

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return teacher.velocity(x_t, t.expand(len(x_t)), [OTHER])

    ours = euler(velocity, noise_of(teacher), times)
    assert ours.shape == (1, *teacher.latent_shape)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, noise_of(teacher), atol=0.05)


def test_wans_own_solver_changes_its_clips_and_not_its_velocity(saved: Saved) -> None:
    from diffusers import UniPCMultistepScheduler

    teacher = opened(saved, "wan")
    x_t, t_B = noise_of(teacher), torch.tensor([0.7])
    plain, velocity = teacher.latents([request()]), teacher.velocity(x_t, t_B, [PROMPT])
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    teacher.clips.pipe.scheduler = UniPCMultistepScheduler(**flow)
    solved = teacher.latents([request()])
    assert torch.equal(teacher.velocity(x_t, t_B, [PROMPT]), velocity)
    assert torch.equal(teacher.latents([request()]), solved)
    assert not torch.allclose(solved, plain)


def test_times_that_are_spread_over_the_tokens_are_the_pipelines_own(saved: Saved) -> None:
    teacher = opened(saved, "wan")
    x_t, t_B = noise_of(teacher), torch.tensor([0.7])
    plain = teacher.velocity(x_t, t_B, [PROMPT])
    teacher.clips.pipe.register_to_config(expand_timesteps=True)  # as Wan 2.2 5B
    torch.testing.assert_close(teacher.velocity(x_t, t_B, [PROMPT]), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", OPEN)
def test_the_vae_decodes_raw_latents_to_the_pipelines_own_pixels(saved: Saved, family: str) -> None:
    teacher = opened(saved, family)
    latents = teacher.latents([request(3)])
    raw = teacher.statistics.raw(latents)
    torch.testing.assert_close(teacher.statistics.normalised(raw), latents, rtol=1e-5, atol=1e-5)
    vae = teacher.clips.pipe.vae
    timestep = [None] if family == "ltx" else []
    with torch.no_grad():
        pixels_BCFHW = vae.decode(raw.transpose(1, 2), *timestep).sample
    frames = ((pixels_BCFHW[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
    made = teacher.generate(request(3)).frames_FCHW
    assert np.abs(frames.astype(int) - made.astype(int)).max() <= 1
    assert made.std() > 1


@pytest.mark.parametrize("t", [1.0, 0.9, 0.31])
def test_wans_velocity_is_its_transformers_answer_with_guidance(saved: Saved, t: float) -> None:
    teacher = opened(saved, "wan", guidance=3.0)
    pipe, x_t = teacher.clips.pipe, noise_of(teacher)
    with torch.no_grad():
        told, untold = (
            pipe.transformer(x_t.transpose(1, 2), torch.tensor([1000 * t]), teacher.encode_prompts([words])).sample
            for words in (PROMPT, "")
        )
    wanted = (untold + 3 * (told - untold)).transpose(1, 2)
    torch.testing.assert_close(teacher.velocity(x_t, torch.tensor([t]), [PROMPT]), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(told, untold)


def test_of_two_experts_the_time_picks_one(saved: Saved) -> None:
    teacher = opened(saved, "wan-of-two")
    pipe, x_t, times = teacher.clips.pipe, noise_of(teacher).expand(3, -1, -1, -1, -1), torch.tensor([1, 0.876, 0.874])
    before = teacher.velocity(x_t, times, [PROMPT] * 3)
    with torch.no_grad():
        for parameter in pipe.transformer_2.parameters():
            parameter.mul_(1.5)
    after = teacher.velocity(x_t, times, [PROMPT] * 3)
    assert torch.equal(before[:2], after[:2])
    assert not torch.allclose(before[2], after[2])


def test_answers_do_not_depend_on_who_else_is_asked(saved: Saved) -> None:
    teacher = opened(saved, "wan")
    x_t, t_B, prompts = (
        torch.cat([noise_of(teacher, seed) for seed in (0, 1)]),
        torch.tensor([0.8, 0.2]),
        [PROMPT, OTHER],
    )
    both = teacher.velocity(x_t, t_B, prompts)
    alone = [teacher.velocity(x_t[row : row + 1], t_B[row : row + 1], prompts[row : row + 1]) for row in (1, 0)]
    assert torch.equal(both, torch.cat(alone[::-1]))
    asked = [request(0), request(1, OTHER)]
    assert torch.equal(teacher.latents(asked), torch.cat([teacher.latents([one]) for one in asked[::-1]]).flip(0))


def test_the_first_frame_of_a_picture_counts(saved: Saved, tmp_path: Path) -> None:
    bright = opened(saved, "wan-image")
    dark = opened(saved, "wan-image", image=picture(tmp_path / "dark.png", colour=20))
    x_t, t_B = noise_of(bright), torch.tensor([0.7])
    assert bright.name != dark.name
    assert not torch.allclose(bright.velocity(x_t, t_B, [PROMPT]), dark.velocity(x_t, t_B, [PROMPT]))


@pytest.mark.parametrize("family", ["wan", "ltx", "hunyuan"])
def test_text_is_the_pipelines_own_and_nothing_where_a_prompt_has_ended(saved: Saved, family: str) -> None:
    arguments: dict[str, Any] = {"max_sequence_length": 40}
    if family == "hunyuan":  # whose own template is longer than that
        arguments["prompt_template"] = {"template": "say {}", "crop_start": 4}
    teacher = opened(saved, family, arguments=arguments)
    text_BLD = teacher.encode_prompts([PROMPT, "ab", OTHER])
    assert text_BLD.shape[0] == 3
    assert text_BLD.shape[2] == 32
    assert (text_BLD[1, 10:] == 0).all()
    assert (text_BLD[0, :10] != 0).any()
    assert torch.equal(teacher.encode_prompts([OTHER, PROMPT]), text_BLD[[2, 0]])
    own = teacher.clips.pipe.encode_prompt(PROMPT, **arguments)[0].detach()
    length = int((text_BLD[0].abs().sum(-1) > 0).sum())
    torch.testing.assert_close(text_BLD[0, :length], own[0, :length])


def test_only_the_last_prompts_are_remembered(saved: Saved) -> None:
    teacher = opened(saved, "wan", arguments={"max_sequence_length": 8})
    teacher.encode_prompts([f"ball {number}" for number in range(20)])
    assert list(teacher._texts) == [f"ball {number}" for number in range(4, 20)]


def test_a_question_that_fails_leaves_the_scheduler_in_its_place(saved: Saved) -> None:
    pipe = opened(saved, "wan").clips.pipe
    own = pipe.scheduler
    with pytest.raises(KeyError), asking(pipe, 0.5):
        raise KeyError
    assert pipe.scheduler is own


@pytest.mark.parametrize("family", OPEN)
def test_an_open_pipeline_is_an_open_teacher(saved: Saved, family: str) -> None:
    teacher = opened(saved, family)
    assert require_open(teacher, "homework") is teacher
    assert teacher.latent_shape == teacher.latents([request()]).shape[1:]


def test_a_network_that_gives_no_velocity_shows_clips_only(saved: Saved) -> None:
    teacher = pipeline_teacher(config_of(saved("cogvideox")))
    with pytest.raises(
        TypeError, match=r"^homework needs an open teacher, and 'pipeline/cogvideox@.*finished clips only"
    ):
        require_open(teacher, "homework")


def test_a_pipeline_that_keeps_its_first_frame_clean_shows_clips_only(saved: Saved) -> None:
    pipe = opened(saved, "wan-image").clips.pipe
    assert open_form(pipe) is not None
    pipe.register_to_config(expand_timesteps=True)
    assert open_form(pipe) is None


def test_latents_are_of_one_size(saved: Saved) -> None:
    teacher = opened(saved, "wan")
    with pytest.raises(ValueError, match=r"are of clips of Geometry\(frames=9, .*; ask for those"):
        teacher.latents([request(size=replace(SIZE, frames=5))])
    with pytest.raises(ValueError, match="makes latents of one size; set geometry to that of the clips"):
        require_open(opened(saved, "wan", geometry=None), "homework")
    odd = Geometry(frames=8, height=30, width=40, fps=8)
    assert opened(saved, "wan", geometry=odd).latent_shape == (3, 16, 4, 6)


@pytest.mark.parametrize("tokens", [False, True])
def test_latents_come_back_as_they_were_packed(tokens: bool) -> None:
    form, latents = OpenForm(text=(), tokens=tokens), torch.randn(2, 3, 4, 5, 6)
    packed = form.pack(latents)
    assert packed.shape == ((2, 3 * 5 * 6, 4) if tokens else (2, 4, 3, 5, 6))
    assert torch.equal(form.unpack(packed, (3, 4, 5, 6)), latents)
