"""When the numbers of a run are an alarm: pure functions of the checkups so far."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from streamstill.config import require_positive
from streamstill.training.health_vitals import Judgement, Vitals

History: TypeAlias = tuple[Vitals, ...]  # the start first, then one after the other


@dataclass(frozen=True, kw_only=True)
class HealthRules:
    """Thresholds. A rule must hold in the last ``patience`` checkups, the start not counted, to be an alarm."""

    patience: int = 2
    saturation: float = 0.05  # mean_r below it, or above 1 minus it
    stale_accuracy: float = 0.25  # of pairs, 1/2 is a guess
    score_rise: float = 0.1  # of mean_r
    error_rise: float = 0.25  # share of the held-out error
    blur: float = 0.1  # share of the sharpness that may be lost
    stillness: float = 0.2  # share of the motion that may be lost
    reliability: float = 0.05

    def __post_init__(self) -> None:
        require_positive(self, "patience")
        shares = ("saturation", "stale_accuracy", "score_rise", "error_rise", "blur", "stillness", "reliability")
        bad = [f"{name}={getattr(self, name)}" for name in shares if not 0 < getattr(self, name) < 1]
        if bad:
            raise ValueError(f"thresholds of alarms lie between 0 and 1, got {', '.join(bad)}")
        if max(self.saturation, self.stale_accuracy) >= 0.5:
            raise ValueError(
                f"saturation={self.saturation} and stale_accuracy={self.stale_accuracy} must be below 1/2: "
                "that is what a discriminator without an opinion gives"
            )


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Something is wrong since ``step``: what was seen, and what to change."""

    name: str
    step: int
    seen: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name} after step {self.step}: {self.seen}; {self.advice}"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """``seen`` says what is wrong at the end of a history, or nothing; ``advice`` names the fields of AFD to change."""

    name: str
    seen: Callable[[History, HealthRules], str]
    advice: str


def alarms(history: History, rules: HealthRules) -> tuple[Alarm, ...]:
    """Every alarm that holds at the end of the history; none before there are ``patience`` checkups after the start."""
    if len(history) <= rules.patience:
        return ()
    found = [(rule, rule.seen(history, rules)) for rule in RULES]
    return tuple(
        Alarm(name=rule.name, step=history[-1].step, seen=seen, advice=rule.advice) for rule, seen in found if seen
    )


def new_alarms(history: History, rules: HealthRules) -> tuple[Alarm, ...]:
    """The alarms that hold now and did not hold one checkup ago: each is told once, until it clears."""
    before = {alarm.name for alarm in alarms(history[:-1], rules)}
    return tuple(alarm for alarm in alarms(history, rules) if alarm.name not in before)


def discriminator_saturated(history: History, rules: HealthRules) -> str:
    """Almost every pair is decided with certainty, so nothing is learnt from it.

    The gradient of AFD Eq. 1 with respect to the gap is r, the probability of the wrong answer: at 0.05 a tenth of what
    it is for a discriminator without an opinion. The other end, r near 1, is a student that beats the teacher's own
    clips. (Fig. 5 of the paper names both ends; how it defines its r is not known to us.) Which of two rollouts is
    better may still be judged well: this is a warning and no proof that updates are useless.
    """
    mean_r = [judged.mean_r for judged in _judged(history, rules)]
    if mean_r and max(mean_r) < rules.saturation:
        return f"mean r is {mean_r[-1]:.3f}, the student is never taken for the teacher"
    if mean_r and min(mean_r) > 1 - rules.saturation:
        return f"mean r is {mean_r[-1]:.3f}, the student is always preferred to the teacher"
    return ""


def discriminator_stale(history: History, rules: HealthRules) -> str:
    """The discriminator prefers the student to the teacher: it judges a student that is no more.

    One that has learnt against the student of now is right in at least half of the pairs, and one without an opinion in
    half. With 16 prompts and two rollouts each, chance spreads that by about 0.1, and a quarter lies far below.
    """
    accuracy = [judged.pair_accuracy for judged in _judged(history, rules)]
    if accuracy and max(accuracy) < rules.stale_accuracy:
        return f"on held-out prompts the discriminator is right in {accuracy[-1]:.2f} of the pairs, less than a guess"
    return ""


def reward_hacking(history: History, rules: HealthRules) -> str:
    """The student's score rises while what does not ask the discriminator gets worse.

    Both are counted from the checkup at which the student scored worst. Worse is a held-out error that grew by more
    than ``error_rise``, or a fall of sharpness or motion as large as its own alarm allows. On-policy updates that help
    raise the error a little too (two of the quickstart's by 3 %), hence a quarter.
    """
    *before, now = history
    then, recent = min(before, key=_mean_r), _recent(history, rules)
    if not all(math.isfinite(_mean_r(v)) and _mean_r(v) > _mean_r(then) + rules.score_rise for v in recent):
        return ""
    worse = [what for what in _worse(then, now, rules) if all(what in _worse(then, v, rules) for v in recent)]
    if not worse:
        return ""
    rose = f"mean r rose from {_mean_r(then):.2f} after step {then.step} to {_mean_r(now):.2f}"
    return f"{rose}, but worse got: {', '.join(worse)}"


def blur_drift(history: History, rules: HealthRules) -> str:
    """Rollouts lose their edges: the known failure of negative-aware updates on step-distilled students.

    Measured against the blurrier of the start and the teacher, so that losing noise that the teacher has not is no
    alarm. A tenth is far: four healthy updates of the quickstart change it by one or two hundredths.
    """
    if all(_falls("sharpness", history[0], vitals, rules.blur) for vitals in _recent(history, rules)):
        return _fallen("sharpness", history)
    return ""


def motion_collapse(history: History, rules: HealthRules) -> str:
    """Clips stand still: less moves, or less of the picture moves, than at the start and in the teacher's clips.

    A fifth lies between what AFD itself costs in the transcription of the paper's Table 1 (0.86 of the dynamic degree
    is kept) and what plain fine-tuning on the teacher's clips does (0.48); both are unverified.
    """
    for name in ("motion", "moving"):
        if all(_falls(name, history[0], vitals, rules.stillness) for vitals in _recent(history, rules)):
            return _fallen(name, history)
    return ""


def noise_only(history: History, rules: HealthRules) -> str:
    """Which rollout of a prompt is better depends on the blindfold's noise alone, and so does the update.

    Rollouts are scored several times; the correlation of two scorings, prompts' means removed, is the share of the
    scores' variance that belongs to the rollouts. The quickstart's is about a quarter. Four scorings of 16 prompts and
    two rollouts know it to about 0.1. High says only that a score would be given again, not that it means anything.
    """
    reliability = [judged.reliability for judged in _judged(history, rules)]
    mean = sum(reliability) / max(1, len(reliability))
    if reliability and mean < rules.reliability:
        return f"between rollouts of one prompt, two scorings agree by {mean:.2f} of 1"
    return ""


RULES = (
    Rule(
        name="discriminator_saturated",
        seen=discriminator_saturated,
        advice="near 0: lower `adversary.optim.lr` or raise `adversary.blindfold.noise`, so that it sees less; "
        "near 1: raise `adversary.optim.lr` or `adversary.steps_per_turn`",
    ),
    Rule(
        name="discriminator_stale",
        seen=discriminator_stale,
        advice="raise `adversary.steps_per_turn`, with an `adversary.replay` of several turns' pairs, or "
        "`adversary.optim.lr`, or lower the student's `optim.lr`",
    ),
    Rule(
        name="reward_hacking",
        seen=reward_hacking,
        advice="raise `adversary.steps_per_turn` so that the discriminator keeps up, lower `optim.lr`, "
        "or hold on to the start with `prior`",
    ),
    Rule(
        name="blur_drift",
        seen=blur_drift,
        advice="lower `optim.lr`, raise `adversary.rollouts_per_prompt`, raise `old.decay` to 0.9, "
        "or hold on to the start with `prior`",
    ),
    Rule(
        name="motion_collapse",
        seen=motion_collapse,
        advice="raise `old.decay` to 0.9, lower `optim.lr`, hold on to the start with `prior`, "
        "or lower `adversary.blindfold.blur` so that the discriminator sees motion",
    ),
    Rule(
        name="noise_only",
        seen=noise_only,
        advice="lower `adversary.blindfold.noise`, raise `adversary.rollouts_per_prompt`, "
        "or let the discriminator learn first with `warmup_turns`",
    ),
)


def _recent(history: History, rules: HealthRules) -> History:
    """The checkups in which a rule must hold."""
    return history[-rules.patience :]


def _judged(history: History, rules: HealthRules) -> list[Judgement]:
    """The judgements in which a rule must hold; none where there is no discriminator."""
    found = [vitals.judgement for vitals in _recent(history, rules) if vitals.judgement]
    return found if len(found) == rules.patience else []


def _mean_r(vitals: Vitals) -> float:
    """Infinite without a discriminator."""
    return vitals.judgement.mean_r if vitals.judgement else math.inf


def _falls(name: str, then: Vitals, now: Vitals, share: float) -> bool:
    """Whether a number of the look lies more than ``share`` below both the teacher's and the one of ``then``."""
    reference: float = min(getattr(then.student, name), getattr(now.teacher, name))
    value: float = getattr(now.student, name)
    return value < (1 - share) * reference


def _fallen(name: str, history: History) -> str:
    start, now = history[0], history[-1]
    value, before, wanted = (getattr(look, name) for look in (now.student, start.student, now.teacher))
    return f"{name} is {value:.3g}, at the start it was {before:.3g}, the teacher's is {wanted:.3g}"


def _worse(then: Vitals, now: Vitals, rules: HealthRules) -> list[str]:
    """What got worse since ``then``, of all that the discriminator has no say in."""
    grew = now.held_out_error > (1 + rules.error_rise) * then.held_out_error
    falls = {"sharpness": rules.blur, "motion": rules.stillness, "moving": rules.stillness}
    return ["the held-out error"] * grew + [name for name, share in falls.items() if _falls(name, then, now, share)]
