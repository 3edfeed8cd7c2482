"""Histories that must and must not be an alarm."""

import re
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstill.config import to_dict
from streamstill.training.health_rules import RULES, HealthRules, Rule, alarms, new_alarms
from streamstill.training.health_vitals import START, Judgement, Look, Vitals
from streamstill.training.objectives.afd import AfdConfig
from tests.training.health_parts import history, vitals

DEFAULT = HealthRules()
FINE: dict[str, float] = {}
SURE, PREFERRED = {"mean_r": 0.01, "pair_accuracy": 1.0}, {"mean_r": 0.97, "pair_accuracy": 0.5}
LIKED = {"mean_r": 0.45}
BLURRED, STILL, FEW = {"sharpness": 8.9}, {"motion": 3.1}, {"moving": 0.2}

# (the checkups after a healthy start, the alarms at the end)
TABLE: list[tuple[list[dict[str, float]], set[str]]] = [
    ([], set()),
    ([FINE, FINE, FINE], set()),
    ([SURE], set()),  # one checkup is not enough
    ([SURE, SURE], {"discriminator_saturated"}),
    ([PREFERRED, PREFERRED], {"discriminator_saturated"}),
    ([SURE, PREFERRED], set()),
    ([SURE, SURE, FINE], set()),  # it clears
    ([{"mean_r": 0.06}] * 2, set()),
    ([{"pair_accuracy": 0.2}] * 2, {"discriminator_stale"}),
    ([{"pair_accuracy": 0.3}] * 2, set()),
    ([{**LIKED, "held_out_error": 0.13}] * 2, {"reward_hacking"}),
    ([{**LIKED, "held_out_error": 0.12}] * 2, set()),
    ([LIKED] * 3, set()),  # a better student scores higher
    ([{"held_out_error": 0.2}] * 2, set()),  # worse, and the discriminator sees it
    ([{"mean_r": 0.1}, {"mean_r": 0.25, **STILL}, {"mean_r": 0.25, **STILL}], {"reward_hacking", "motion_collapse"}),
    ([{**LIKED, **BLURRED}, {**LIKED, **STILL}], set()),  # each time another thing is worse
    ([BLURRED] * 2, {"blur_drift"}),
    ([{"sharpness": 9.1}] * 2, set()),
    ([{"sharpness": 30.0}] * 2, set()),
    ([STILL] * 2, {"motion_collapse"}),
    ([FEW] * 2, {"motion_collapse"}),
    ([{"motion": 3.3, "moving": 0.25}] * 2, set()),
    ([STILL, FEW], set()),
    ([{"reliability": 0.3}, {"reliability": -0.2}], {"noise_only"}),  # their mean counts: one checkup is noisy
    ([{"reliability": 0.2}, {"reliability": 0.0}], set()),
    ([{**SURE, **BLURRED, **STILL}] * 2, {"discriminator_saturated", "blur_drift", "motion_collapse"}),
]

numbers = st.floats(0.01, 100)
shares = st.floats(0, 1)
judgements = st.builds(
    Judgement,
    pair_accuracy=shares,
    logit_gap=st.floats(-9, 9),
    mean_r=shares,
    advantage_spread=numbers,
    reliability=st.floats(-1, 1),
)


@st.composite
def checkups(draw: st.DrawFn) -> Vitals:
    look = {name: draw(numbers) for name in ("sharpness", "motion", "moving")}
    return replace(vitals(START, **look, held_out_error=draw(numbers)), judgement=draw(judgements))


def score(checkup: Vitals) -> float:
    assert checkup.judgement
    return checkup.judgement.mean_r


histories = st.lists(checkups(), min_size=1, max_size=6).map(tuple)


def names(past: tuple[Vitals, ...], rules: HealthRules = DEFAULT) -> set[str]:
    return {alarm.name for alarm in alarms(past, rules)}


@pytest.mark.parametrize(("after", "expected"), TABLE)
def test_the_table(after: list[dict[str, float]], expected: set[str]) -> None:
    assert names(history(*after)) == expected


def test_every_rule_is_in_the_table_as_an_alarm_and_as_none() -> None:
    assert {name for _, fired in TABLE for name in fired} == {rule.name for rule in RULES}
    assert [rule.name for rule in RULES] == [rule.seen.__name__ for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_advice_names_fields_that_exist(rule: Rule) -> None:
    told = re.findall(r"`([\w.]+)`", rule.advice)
    assert told
    for name in told:
        table = to_dict(AfdConfig())
        for key in name.split("."):
            table = table[key]


def test_an_alarm_is_told_once_until_it_clears_and_then_again() -> None:
    past = history(STILL, STILL, STILL, FINE, STILL, STILL, STILL)
    told = [(alarm.name, alarm.step) for end in range(len(past) + 1) for alarm in new_alarms(past[:end], DEFAULT)]
    assert told == [("motion_collapse", 3), ("motion_collapse", 11)]


def test_an_alarm_says_what_was_seen_and_what_to_do() -> None:
    (alarm,) = alarms(history(BLURRED, {"sharpness": 7.25}), DEFAULT)
    assert str(alarm) == (
        "blur_drift after step 3: sharpness is 7.25, at the start it was 10, the teacher's is 10; lower `optim.lr`, "
        "raise `adversary.rollouts_per_prompt`, raise `old.decay` to 0.9, or hold on to the start with `prior`"
    )


def test_hacking_names_what_got_worse_and_since_when() -> None:
    worse = {**LIKED, "held_out_error": 0.2, "sharpness": 5.0}
    told = {alarm.name: alarm.seen for alarm in alarms(history({"mean_r": 0.2}, worse, worse), DEFAULT)}
    assert told["reward_hacking"] == (
        "mean r rose from 0.20 after step 1 to 0.45, but worse got: the held-out error, sharpness"
    )


@pytest.mark.parametrize("what", [{"sharpness": 5.0}, {"motion": 1.0}, {"moving": 0.05}])
def test_what_the_student_lacked_from_the_start_is_no_drift(what: dict[str, float]) -> None:
    assert names((vitals(START, **what), vitals(1, **what), vitals(3, **what))) == set()


def test_a_noisy_start_may_lose_its_noise_but_not_more() -> None:
    """A start sharper than the teacher: down to the teacher's sharpness is no drift."""
    start = vitals(sharpness=30.0)
    assert names((start, vitals(1), vitals(3))) == set()
    assert names((start, vitals(1, **BLURRED), vitals(3, **BLURRED))) == {"blur_drift"}


def test_without_a_discriminator_only_the_pictures_are_watched() -> None:
    past = tuple(replace(each, judgement=None) for each in history({**SURE, **BLURRED}, {**SURE, **BLURRED}))
    assert names(past) == {"blur_drift"}


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_is_the_number_of_checkups_in_a_row(patience: int) -> None:
    rules = HealthRules(patience=patience)
    for count in range(5):
        assert names(history(FINE, FINE, *[STILL] * count), rules) == (
            {"motion_collapse"} if count >= patience else set()
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"blur": 0.0}, "thresholds of alarms lie between 0 and 1, got blur=0.0"),
        ({"reliability": 1.5}, "got reliability=1.5"),
        ({"saturation": 0.5}, "saturation=0.5 and stale_accuracy=0.25 must be below 1/2"),
        ({"stale_accuracy": 0.7}, "must be below 1/2: that is what a discriminator without an opinion gives"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HealthRules(**fields)


@given(histories, st.integers(-3, 3))
def test_alarms_of_the_pictures_do_not_depend_on_their_contrast(past: tuple[Vitals, ...], power: int) -> None:
    scaled = tuple(replace(v, student=louder(v.student, power), teacher=louder(v.teacher, power)) for v in past)
    assert names(scaled) == names(past)


def louder(look: Look, power: int) -> Look:
    """By a power of two, so that nothing is rounded."""
    return replace(look, sharpness=look.sharpness * 2.0**power, motion=look.motion * 2.0**power)


@given(histories, st.integers(-3, 3))
def test_alarms_do_not_depend_on_the_unit_of_the_error(past: tuple[Vitals, ...], power: int) -> None:
    assert names(tuple(replace(v, held_out_error=v.held_out_error * 2.0**power) for v in past)) == names(past)


@given(histories, st.integers(-9, 9))
def test_alarms_do_not_depend_on_how_steps_are_counted(past: tuple[Vitals, ...], shift: int) -> None:
    assert names(tuple(replace(v, step=3 * v.step + shift) for v in past)) == names(past)


@given(histories)
def test_only_hacking_looks_further_back_than_its_patience(past: tuple[Vitals, ...]) -> None:
    """The others see the start and the last checkups: what lay between may come in any order, or not at all."""
    short = (past[0], *past[max(1, len(past) - DEFAULT.patience) :])
    assert names(short) - {"reward_hacking"} == names(past) - {"reward_hacking"}


@given(st.lists(checkups(), min_size=3, max_size=7, unique_by=score).map(tuple), st.randoms(use_true_random=False))
def test_the_order_of_the_checkups_before_the_last_does_not_matter(past: tuple[Vitals, ...], dice: Random) -> None:
    between = list(past[1 : -DEFAULT.patience])
    dice.shuffle(between)
    assert names((past[0], *between, *past[-DEFAULT.patience :])) == names(past)


@given(histories)
def test_both_ends_of_r_are_alike(past: tuple[Vitals, ...]) -> None:
    turned = tuple(
        replace(v, judgement=replace(v.judgement, mean_r=1 - v.judgement.mean_r)) for v in past if v.judgement
    )
    assert ("discriminator_saturated" in names(turned)) == ("discriminator_saturated" in names(past))


@given(histories, st.floats(0.1, 1))
def test_what_is_an_alarm_stays_one_when_it_gets_worse(past: tuple[Vitals, ...], share: float) -> None:
    last = past[-1]
    look = replace(last.student, sharpness=share * last.student.sharpness, motion=share * last.student.motion)
    worse = (*past[:-1], replace(last, student=look))
    if len(past) > 1:
        assert names(past) & {"blur_drift", "motion_collapse"} <= names(worse)


@given(st.lists(st.sampled_from([FINE, SURE, LIKED, BLURRED, STILL]), max_size=7).map(tuple))
def test_what_is_told_is_what_holds(after: tuple[dict[str, float], ...]) -> None:
    """Whoever hears every new alarm, and looks when one clears, knows the alarms of every moment."""
    past = history(*after)
    held: set[str] = set()
    for end in range(1, len(past) + 1):
        now = names(past[:end])
        told = {alarm.name for alarm in new_alarms(past[:end], DEFAULT)}
        assert told == now - held
        held = now
