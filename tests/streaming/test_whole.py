"""A clip in one piece: known fields, given frames, guidance, and the definition on the real network."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from streamstill.flow.samplers import euler, few_step
from streamstill.flow.times import Sampling
from streamstill.streaming.whole import sample_whole
from tests.student.conftest import build, tiny

SHAPE, SAMPLING = (6, 4, 4), Sampling(steps=3, shift=4.0)
Field = Callable[[Tensor, Tensor, Tensor], Tensor]


def drawn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TEXT, NOTHING, OPENING = drawn(2, 7, 10), drawn(2, 7, 10, seed=5), drawn(2, 2, *SHAPE, seed=6)


class Watcher:
    """A model that answers with a field of (x_t, t, text) and writes down what it was asked."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def velocity_bidirectional(self, x_t: Tensor, t: Tensor, text_BLD: Tensor) -> Tensor:
        self.asked.append((x_t, t, text_BLD))
        return self.field(x_t, t[..., None, None, None], text_BLD)


def strength(x_t: Tensor, t: Tensor, text_BLD: Tensor) -> Tensor:
    """The text's mean everywhere."""
    return torch.ones_like(x_t) * text_BLD.mean()


def whole(model: object, frames: int = 5, **changes: object) -> Tensor:
    arguments = {"latent_shape": SHAPE, "sampling": SAMPLING, "generator": torch.Generator().manual_seed(0)}
    return sample_whole(model, TEXT, frames=frames, **(arguments | changes))  # type: ignore[arg-type]


def test_a_known_field_is_integrated() -> None:
    """dx/dt = 3 t^2 from t=1 to 0 lowers x by 1, whatever the text."""
    model = Watcher(lambda x_t, t, _: 3 * t**2 * torch.ones_like(x_t))
    noise = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    made = whole(model, frames=3, sampling=Sampling(steps=2000, shift=1.0))
    torch.testing.assert_close(made, noise - 1, atol=1e-3, rtol=0)


def test_who_knows_the_clean_clip_makes_it_beside_the_opening() -> None:
    target = drawn(2, 5, *SHAPE, seed=7)
    model = Watcher(lambda x_t, t, _: (x_t - target) / t.clamp_min(1e-3))
    for sampler in (euler, few_step):
        made = whole(model, opening_BFCHW=OPENING, sampler=sampler)
        assert torch.equal(made[:, :2], OPENING)
        torch.testing.assert_close(made[:, 2:], target[:, 2:], atol=1e-5, rtol=0)


def test_every_step_sees_the_opening_clean_at_time_zero_and_the_rest_at_its_own_time() -> None:
    model = Watcher(strength)
    whole(model, opening_BFCHW=OPENING)
    assert len(model.asked) == SAMPLING.steps
    for (x_t, t_BF, text_BLD), t in zip(model.asked, SAMPLING.times()[:-1], strict=True):
        assert torch.equal(x_t[:, :2], OPENING)
        assert t_BF.shape == (2, 5)
        assert (t_BF[:, :2] == 0).all()
        assert (t_BF[:, 2:] == t).all()
        assert torch.equal(text_BLD, TEXT)


@pytest.mark.parametrize(("given", "guidance"), [(0, 1.0), (2, 1.0), (1, 2.5)])
def test_it_follows_the_definition_on_the_network(given: int, guidance: float) -> None:
    network, times, opening = build(tiny()), SAMPLING.times().double(), OPENING[:, :given]
    x = torch.randn(2, 5 - given, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for t, t_next in pairwise(times):
            t_BF = torch.cat([torch.zeros(2, given), torch.full((2, 5 - given), float(t))], dim=1).double()
            clip = torch.cat([opening, x], dim=1)
            v_c, v_u = (network.velocity_bidirectional(clip, t_BF, text)[:, given:] for text in (TEXT, NOTHING))
            x = x + (t_next - t) * (v_u + guidance * (v_c - v_u))
        made = whole(network, guidance=guidance, empty_text_BLD=NOTHING, opening_BFCHW=opening if given else None)
    torch.testing.assert_close(made, torch.cat([opening, x], dim=1))


def test_the_future_matters() -> None:
    """Streaming makes the first chunk before the others exist; here a longer clip begins otherwise."""
    network = build(tiny())
    noise = torch.randn(2, 8, *SHAPE, generator=torch.Generator().manual_seed(0)).double()

    def made(frames: int) -> Tensor:
        def sampler(velocity_fn: Callable[[Tensor, Tensor], Tensor], _: Tensor, times: Tensor, __: object) -> Tensor:
            return velocity_fn(noise[:, :frames], times[0])

        with torch.no_grad():
            return whole(network, frames=frames, sampler=sampler)

    assert not torch.allclose(made(8)[:, :2], made(2))


def test_guidance_scales_what_the_prompt_changes() -> None:
    """A constant field moves x from noise by minus itself between t=1 and t=0."""
    noise = whole(Watcher(lambda x_t, _t, _text: torch.zeros_like(x_t)))
    for scale in (0.0, 1.0, 3.0):
        made = whole(Watcher(strength), guidance=scale, empty_text_BLD=NOTHING)
        wanted = NOTHING.mean() + scale * (TEXT.mean() - NOTHING.mean())
        torch.testing.assert_close(made, noise - wanted, atol=1e-6, rtol=0)


def test_without_guidance_the_model_is_called_once_a_step_and_never_without_its_prompt() -> None:
    plain, guiding = Watcher(strength), Watcher(strength)
    whole(plain, guidance=1.0, empty_text_BLD=NOTHING)
    whole(guiding, guidance=1.5, empty_text_BLD=NOTHING)
    assert len(plain.asked) == SAMPLING.steps
    assert all(torch.equal(text_BLD, TEXT) for _, _, text_BLD in plain.asked)
    assert len(guiding.asked) == 2 * SAMPLING.steps


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance": 3.0}, r"guidance other than 1 needs empty_text_BLD"),
        ({"guidance": 3.0, "empty_text_BLD": NOTHING[:1]}, r"\(1, 7, 10\) and the text \(2, 7, 10\)"),
        ({"guidance": float("nan"), "empty_text_BLD": NOTHING}, r"guidance must be a finite number"),
        ({"frames": 0}, r"a video of 0 latent frames"),
        ({"frames": 2, "opening_BFCHW": OPENING}, r"ask for at least 3"),
        ({"opening_BFCHW": OPENING[:1]}, r"the opening of this video needs the shape \(2, 1 or more, 6, 4, 4\)"),
    ],
)
def test_what_cannot_be_made_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        whole(Watcher(strength), **changes)  # type: ignore[arg-type]
