"""The config of a local pipeline: read strictly, refused in one sentence."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamstill.config import from_dict, to_dict
from streamstill.teachers.pipelines.config import PipelineConfig
from tests.teachers.pipelines.asking import config_of


def test_it_comes_back_from_plain_values() -> None:
    quantisation = {"quant_backend": "bitsandbytes_4bit", "quant_kwargs": {"load_in_4bit": True}}
    config = config_of(Path("a/b"), quantisation=quantisation, device="cuda", offload="model")
    assert from_dict(PipelineConfig, to_dict(config)) == config
    assert from_dict(PipelineConfig, {"source": "a/b"}) == PipelineConfig(source="a/b")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": ""}, "source is empty; give a repo id such as owner/name, or the folder"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan; leave it out"),
        ({"dtype": "float31"}, "unknown dtype 'float31': choose one of bfloat16, float16, float32; did you mean"),
        ({"vae_dtype": "int8"}, "unknown dtype 'int8'"),
        ({"offload": "disk"}, "unknown offload 'disk': choose one of none, model, sequential, group"),
        ({"offload": "model"}, "offload 'model' moves parts between the CPU and an accelerator, and device is 'cpu'"),
        (
            {"arguments": {"prompt": "x", "eta": 1, "latents": 0}},
            r"arguments may not hold \['latents', 'prompt'\]: they",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PipelineConfig(**{"source": "a/b", **changes})


def test_a_misspelt_field_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"config has no field \['guidence'\]; its fields are"):
        from_dict(PipelineConfig, {"source": "a/b", "guidence": 5.0})


def test_importing_the_room_loads_no_diffusers() -> None:
    code = "import sys; import streamstill.teachers.pipelines.opened; sys.exit('diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
