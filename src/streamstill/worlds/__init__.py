"""Rigid-body worlds that play prompts, and judges that look at the pixels."""

from streamstill.worlds.grammar import Scene, parse, prompts, sample_prompt
from streamstill.worlds.judge import dynamic_degree, judge, permanence, physics_error, prompt_obedience, size_error
from streamstill.worlds.mechanics import energy_error, momentum_error, restitution_error
from streamstill.worlds.motion_features import motion_features
from streamstill.worlds.physics import REAL_LAWS, Laws
from streamstill.worlds.tracker import Track, track
from streamstill.worlds.world import LooseWorld, World

__all__ = [
    "World",
    "LooseWorld",
    "Laws",
    "REAL_LAWS",
    "Scene",
    "parse",
    "prompts",
    "sample_prompt",
    "Track",
    "track",
    "judge",
    "physics_error",
    "dynamic_degree",
    "prompt_obedience",
    "permanence",
    "size_error",
    "restitution_error",
    "energy_error",
    "momentum_error",
    "motion_features",
]
