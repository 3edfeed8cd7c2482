"""The supernet: eqs. (2)-(6) as printed, hard masks equal to the network they stand for, counts that always hold."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from streamstill.search.placement import (
    PlacementNet,
    Streams,
    answer,
    carried,
    logistic_noise,
    top_mask,
)
from streamstill.state import StreamState
from streamstill.student.mixer import RunMixer
from streamstill.student.resize import downsample, upsample
from streamstill.student.sandwich import SandwichDiT
from streamstill.training.optim import OptimConfig, build_optimizer
from tests.student.conftest import tiny

H, W = 4, 6
WORTHS_G = torch.tensor([0.3, -1.0, 0.5, -0.2, 0.9, -0.8])


def shaken(net: PlacementNet) -> PlacementNet:
    """The net in float64, no path switched off, its logits level."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in net.double().named_parameters():
            if name != "raw_logits_G":
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


def supernet(layout: str = "LLSSS", group_size: int = 1, cls: type[PlacementNet] = PlacementNet) -> PlacementNet:
    torch.manual_seed(0)
    return shaken(cls(tiny(layout), group_size=group_size))


def taught(network: SandwichDiT, dtype: torch.dtype = torch.float64) -> Tensor:
    """The velocity of two chunks in one training pass."""
    generator = torch.Generator().manual_seed(2)
    x_t, context = torch.randn(2, 1, 4, 6, H, W, generator=generator, dtype=torch.float64).to(dtype)
    t_BK = torch.tensor([[0.3, 0.8]], dtype=dtype)
    text = torch.randn(1, 5, 10, generator=generator, dtype=torch.float64).to(dtype)
    return network.velocity_in_context(x_t, t_BK, text, context_BFCHW=context)


def layouts(groups: int, group_size: int = 1) -> list[str]:
    """Every layout there is, of any counts."""
    return ["".join(kind * group_size for kind in kinds) for kinds in itertools.product("LS", repeat=groups)]


class GivenMask(PlacementNet):
    """A supernet whose mask is a leaf of the graph."""

    given_G: Tensor

    def mask(self) -> Tensor:
        return self.given_G


class Transcript(GivenMask):
    """The equations letter by letter, for any mask in [0, 1]; every version of every group runs."""

    def through_blocks(
        self,
        x_RFHWD: Tensor,
        condition_RF6D: Tensor,
        text_BLD: Tensor,
        state: StreamState,
        run: RunMixer,
        *,
        memory_only: bool = False,
    ) -> tuple[Tensor, StreamState]:
        m = [torch.ones((), dtype=x_RFHWD.dtype), *self.given_G]
        y_l, y_s, s = [x_RFHWD], [downsample(self.down["0"], x_RFHWD)], [x_RFHWD]
        for n in range(1, self.groups + 1):

            def f(x: Tensor, index: int) -> Tensor:
                return self.blocks[index](x, condition_RF6D, text_BLD, state.blocks[index], run)[0]

            u = torch.max(m[n] - m[n - 1], torch.zeros_like(m[0]))
            d = torch.max(m[n - 1] - m[n], torch.zeros_like(m[0]))
            yt_l = f((1 - u) * y_l[n - 1] + u * (upsample(y_s[n - 1]) + s[n - 1]), n - 1)
            yt_s = f((1 - d) * y_s[n - 1] + d * downsample(self.down[str(n - 1)], y_l[n - 1]), self.groups + n - 1)
            s.append(d * y_l[n - 1] + (1 - d) * s[n - 1])
            y_l.append(m[n] * yt_l + (1 - m[n]) * y_l[n - 1])
            y_s.append((1 - m[n]) * yt_s + m[n] * y_s[n - 1])
        return m[-1] * y_l[-1] + (1 - m[-1]) * upsample(y_s[-1]), state


def given_mask(cls: type[GivenMask], mask: list[float] | Tensor) -> GivenMask:
    net = supernet(cls=cls)
    assert isinstance(net, GivenMask)
    net.given_G = torch.as_tensor(mask, dtype=torch.float64)
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("layout", "group_size"), [("LLSSS", 1), ("LLSSSS", 2)])
def test_every_hard_mask_gives_the_bits_of_the_network_it_stands_for(
    layout: str, group_size: int, dtype: torch.dtype
) -> None:
    net = supernet(layout, group_size).to(dtype)
    for one in layouts(net.groups, group_size):
        net.fix(one)
        alone = net.extract(one)
        assert alone.config == tiny(one)
        assert torch.equal(taught(net, dtype), taught(alone, dtype)), one


def test_drawn_masks_too_give_the_bits_of_the_network_they_stand_for() -> None:
    net, generator = supernet(), torch.Generator().manual_seed(0)
    for learns in (True, False) * 5:
        net.perturb(net.noise(generator), learns=learns)
        assert torch.equal(taught(net), taught(net.extract(net.layout_of(net.mask().tolist()))))


def test_a_fixed_layout_streams_like_the_network_it_stands_for() -> None:
    net = supernet()
    net.fix("SLLSS")
    alone = net.extract("SLLSS")
    x = torch.randn(1, 2, 6, H, W, dtype=torch.float64)
    t, text = torch.full((1,), 0.5, dtype=torch.float64), torch.randn(1, 5, 10, dtype=torch.float64)
    mine = net.remember(x, text, net.initial_state(1, H, W, x))
    other = alone.remember(x, text, alone.initial_state(1, H, W, x))
    assert torch.equal(net.velocity(x, t, text, mine), alone.velocity(x, t, text, other))


def test_an_extracted_network_has_its_own_weights() -> None:
    net = supernet()
    before = taught(net.extract("LSLSS"))
    alone = net.extract("LSLSS")
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.add_(1)
    assert torch.equal(taught(net.extract("LSLSS")), before)
    assert all(parameter.requires_grad for parameter in alone.parameters())


def test_extracting_draws_nothing() -> None:
    net, state = supernet(), torch.random.get_rng_state()
    net.extract()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_one_group_is_the_equations_in_numbers() -> None:
    """Eqs. (2)-(6) with numbers for streams: f_L = 3x, f_S = x^2, up = 10x, down = x/10."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "full_group": lambda x: 3 * x,
        "low_group": lambda x: x**2,
        "up": lambda x: 10 * x,
        "down": lambda x: x / 10,
    }
    for m_before, m in itertools.product((0.0, 0.25, 0.5, 1.0), repeat=2):
        y_l, y_s, s = 2.0, 0.7, -1.0
        u, d = max(m - m_before, 0), max(m_before - m, 0)
        made_l = 3 * ((1 - u) * y_l + u * (10 * y_s + s))
        made_s = ((1 - d) * y_s + d * y_l / 10) ** 2
        wanted = [m * made_l + (1 - m) * y_l, (1 - m) * made_s + m * y_s, d * y_l + (1 - d) * s, m]
        streams = Streams(*(torch.tensor(value, dtype=torch.float64) for value in (y_l, y_s, s, m_before)))
        found = carried(streams, torch.tensor(m, dtype=torch.float64), **changes)
        torch.testing.assert_close(torch.stack(found), torch.tensor(wanted, dtype=torch.float64))
        last = m * wanted[0] + (1 - m) * 10 * wanted[1]
        assert float(answer(found, up=changes["up"])) == pytest.approx(last)


@pytest.mark.parametrize("mask", [[1, 0, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 1, 0]])
def test_the_net_is_the_printed_equations_and_their_derivative_towards_the_inside(mask: list[float]) -> None:
    """Values by a transcript; derivatives by its one-sided differences, for the mask can only move inwards."""
    net, literal = given_mask(GivenMask, mask), given_mask(Transcript, mask)
    net.given_G.requires_grad_(True)
    loss = taught(net).square().sum()
    with torch.no_grad():
        torch.testing.assert_close(taught(net), taught(literal), rtol=1e-12, atol=1e-12)
        differences = []
        for n, value in enumerate(mask):
            inwards = 1e-6 * (1 - 2 * value)
            literal.given_G = net.given_G.detach().index_add(0, torch.tensor([n]), torch.tensor([inwards]).double())
            differences.append((taught(literal).square().sum() - loss) / inwards)
    loss.backward()
    torch.testing.assert_close(net.given_G.grad, torch.stack(differences), rtol=1e-4, atol=1e-4)


def test_the_loss_reaches_all_logits_and_the_weights_that_count() -> None:
    net = supernet("LSS")
    net.perturb(torch.tensor([0.0, 9.0, 0.0]))
    taught(net).square().mean().backward()
    assert net.raw_logits_G.grad is not None
    assert (net.raw_logits_G.grad != 0).all()
    idle = {int(name.split(".")[1]) for name, p in net.blocks.named_parameters("blocks") if p.grad is None}
    assert idle == {0, 2, 4}  # full versions of the low groups, the low version of the full one


def test_logits_that_do_not_learn_get_no_gradient() -> None:
    net = supernet("LSS")
    net.perturb(net.noise(torch.Generator().manual_seed(0)), learns=False)
    taught(net).square().mean().backward()
    assert net.raw_logits_G.grad is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_drawn_mask_always_has_its_count(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for draw in range(2000):
        logits = torch.randn(6, generator=generator, dtype=torch.float64) * (draw % 7)
        mask = top_mask(logits + logistic_noise(6, generator), count=count, temperature=0.1 + draw % 3)
        assert mask.sum() == count
        assert set(mask.tolist()) == {0.0, 1.0}


def test_the_highest_are_chosen_and_ties_go_to_the_earlier() -> None:
    assert top_mask(torch.tensor([0.1, 3.0, -1.0, 2.0]), count=2, temperature=1.0).tolist() == [0, 1, 0, 1]
    assert top_mask(torch.zeros(4), count=2, temperature=1.0).tolist() == [1, 1, 0, 0]


def gradients(draws: int) -> Tensor:
    """Of the sum of the worths of what is full, by the logits, averaged over masks."""
    logits_G, generator = torch.zeros(6, requires_grad=True), torch.Generator().manual_seed(0)
    for _ in range(draws):
        mask_G = top_mask(logits_G + logistic_noise(6, generator).float(), count=2, temperature=1.0)
        ((mask_G * WORTHS_G).sum() / draws).backward()
    assert logits_G.grad is not None
    return logits_G.grad


def test_on_average_the_gradient_ranks_the_groups_as_the_loss_does() -> None:
    average_G = gradients(2000)
    assert average_G.argsort().tolist() == WORTHS_G.argsort().tolist()
    assert average_G.min() < 0 < average_G.max()


def test_a_shift_of_all_logits_has_no_gradient() -> None:
    assert abs(float(gradients(1).sum())) < 1e-6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_search_finds_the_best_groups_of_a_known_loss_and_never_leaves_the_counts(seed: int, noise: float) -> None:
    net = PlacementNet(tiny("LLSSSS"))
    optim = OptimConfig(lr=2e-3)
    optimizer, generator = build_optimizer(net, optim), torch.Generator().manual_seed(seed)
    for step in range(600):
        net.anneal(step / 599)
        net.perturb(net.noise(generator))
        mask_G = net.mask()
        assert mask_G.sum() == 2
        optimizer.zero_grad()
        (mask_G * (WORTHS_G + noise * torch.randn(6, generator=generator))).sum().backward()
        optimizer.step()
    decision = net.decided()
    assert decision.layout == net.layout() == "SLSSSL"
    assert min(decision.probabilities[1], decision.probabilities[5]) > 0.75


def test_a_report_knows_open_from_decided() -> None:
    net = PlacementNet(tiny("LSSS"))
    level = net.decided()
    assert level.probabilities == pytest.approx([0.25] * 4, abs=0.02)
    assert level.entropies == pytest.approx([0.811] * 4, abs=0.02)  # of 1/4, in bits
    with torch.no_grad():
        net.raw_logits_G.copy_(torch.tensor([-5.0, 5.0, -5.0, -5.0]))
    sure = net.decided()
    assert (sure.layout, sure.probabilities[1]) == ("SLSS", 1.0)
    assert max(sure.entropies) < 0.001
    assert sum(sure.probabilities) == pytest.approx(1)
    assert net.decided() == sure


def test_annealing_is_geometric() -> None:
    net = PlacementNet(tiny("LS"))
    seen = []
    for fraction in (0.0, 0.5, 1.0):
        net.anneal(fraction, start=4, end=0.25)
        seen.append(net.temperature)
    assert seen == pytest.approx([4, 1, 0.25])


def test_a_lower_temperature_keeps_the_gradient_near_the_threshold() -> None:
    shares = []
    for temperature in (2.0, 0.5, 0.1):
        logits_G = torch.tensor([3.0, 0.2, 0.0, -3.0], requires_grad=True)
        top_mask(logits_G, count=2, temperature=temperature)[[0, 3]].sum().backward()
        assert logits_G.grad is not None
        shares.append(float(logits_G.grad[0].abs()))
    assert shares == sorted(shares, reverse=True)


def test_costs_count_both_versions() -> None:
    net = supernet("LLSSSS", 2)
    assert net.parameter_count() == sum(p.numel() for p in net.state_dict().values())
    net.perturb(net.noise(torch.Generator().manual_seed(0)))  # logits that learn ask for both versions
    x, text = torch.randn(1, 2, 6, H, W, dtype=torch.float64), torch.randn(1, 5, 10, dtype=torch.float64)
    state = net.initial_state(1, H, W, x)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the one kernel that it can count
        net.velocity(x, torch.ones(1, dtype=torch.float64), text, state)
    assert net.flops(H, W, text_tokens=5) == counter.get_total_flops()
    assert net.latent_step == 2


@pytest.mark.parametrize(
    ("layout", "group_size", "said"),
    [
        ("LLSSS", 2, "groups of 2 do not divide the 5 blocks of 'LLSSS', 2 of them L"),
        ("LLLSSS", 2, "groups of 2 do not divide the 6 blocks of 'LLLSSS', 3 of them L"),
        ("LLSS", 0, "groups of 0 do not divide"),
        ("LLLL", 1, "one full-resolution kind among S blocks, got 'LLLL'"),
        ("SSSS", 1, "one full-resolution kind among S blocks, got 'SSSS'"),
        ("LFSS", 1, "one full-resolution kind among S blocks, got 'LFSS'"),
        ("LXSS", 1, "unknown letters"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(layout: str, group_size: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PlacementNet(tiny(layout), group_size=group_size)


@pytest.mark.parametrize("layout", ["LS", "LSLSFF", "LSSLSS", "LLSSSSSS"])
def test_a_layout_that_the_net_does_not_contain_is_refused(layout: str) -> None:
    net = PlacementNet(tiny("LLSSSS"), group_size=2)
    for ask in (net.fix, net.extract):
        with pytest.raises(ValueError, match=f"3 groups, each LL or SS, and does not contain '{layout}'"):
            ask(layout)


@pytest.mark.parametrize(("fraction", "end"), [(-0.1, 0.2), (1.1, 0.2), (float("nan"), 0.2), (0.5, 0.0)])
def test_annealing_elsewhere_is_refused(fraction: float, end: float) -> None:
    with pytest.raises(ValueError, match=r"a fraction in \[0, 1\] and positive temperatures"):
        PlacementNet(tiny("LS")).anneal(fraction, end=end)


def test_another_full_kind_can_be_placed() -> None:
    net = supernet("FS")
    net.fix("SF")
    assert torch.equal(taught(net), taught(net.extract("SF")))
