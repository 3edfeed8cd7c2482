import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streamstill.training.checkpoint import (
    TrainingState,
    load_optimizer,
    optimizer_tensors,
    read_state,
    require_same_tensors,
    write_state,
)
from streamstill.training.optim import OptimConfig, build_optimizer

KILLED_WRITER = """
import sys
from pathlib import Path
import torch
from streamstill.training.checkpoint import TrainingState, write_state
for step in range(10**6):
    tensors = {"a/module/weight": torch.full((1 << 22,), float(step)), "a/module/bias": torch.full((4,), float(step))}
    write_state(Path(sys.argv[1]), TrainingState(step=step, tensors=tensors, counters={"a/moves": step}, config={}))
    print(step, flush=True)
"""


def a_state(**tensors: Tensor) -> TrainingState:
    return TrainingState(step=3, tensors=tensors, counters={"a/moves": 2}, config={"trainer": {"seed": 1}})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state = a_state(x=torch.randn(3, 2).bfloat16(), n=torch.tensor(7), turned=torch.randn(4, 3).T, empty=torch.empty(0))
    write_state(tmp_path / "training" / "state.safetensors", state)
    again = read_state(tmp_path / "training" / "state.safetensors")
    assert (again.step, again.counters, again.config) == (3, {"a/moves": 2}, {"trainer": {"seed": 1}})
    assert again.torch_version == torch.__version__
    assert again.tensors.keys() == state.tensors.keys()
    for name, tensor in state.tensors.items():
        assert again.tensors[name].dtype == tensor.dtype
        assert torch.equal(again.tensors[name], tensor)


def test_tensors_that_share_memory_are_written_twice(tmp_path: Path) -> None:
    shared = torch.randn(6)
    write_state(tmp_path / "s", a_state(whole=shared, half=shared[:3]))
    tensors = read_state(tmp_path / "s").tensors
    assert torch.equal(tensors["whole"], shared)
    assert torch.equal(tensors["half"], shared[:3])


def test_nothing_but_the_state_is_left_behind(tmp_path: Path) -> None:
    for _ in range(2):
        write_state(tmp_path / "s", a_state(x=torch.zeros(2)))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_killing_the_writer_at_any_moment_leaves_a_whole_state(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    writer = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    steps = []
    with writer:
        try:
            writer.stdout.readline()
            for delay in range(20):  # stop the writer in the middle of its work, read, let it go on
                time.sleep(0.0017 * delay)
                os.kill(writer.pid, signal.SIGSTOP)
                steps.append(_whole(path))
                os.kill(writer.pid, signal.SIGCONT)
        finally:
            writer.kill()
    steps.append(_whole(path))
    assert steps == sorted(steps)
    write_state(path, a_state(x=torch.zeros(2)))  # a partial file that was left behind is in nobody's way
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def _whole(path: Path) -> int:
    state = read_state(path)
    assert state.counters == {"a/moves": state.step}
    assert all(bool((tensor == state.step).all()) for tensor in state.tensors.values())
    return state.step


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "state.safetensors"
    write_state(path, a_state(x=torch.randn(100)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged or was cut off .*delete the file"):
        read_state(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no training state at .*nowhere"):
        read_state(tmp_path / "nowhere")


def test_weights_alone_are_not_a_training_state(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors holds tensors but no training state"):
        read_state(tmp_path / "model.safetensors")


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_state(path, a_state(x=torch.zeros(2)))
    save_file(load_file(path), path, metadata={"training_state": json.dumps({"format": 99})})
    with pytest.raises(ValueError, match="format version 99, this streamstill reads version 1"):
        read_state(path)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"x": torch.zeros(2, 3)}, r"float32 \(2, 3\) for 'x' where this run needs float32 \(2,\)"),
        ({"x": torch.zeros(2).half()}, r"float16 \(2,\) for 'x'"),
        ({}, "holds nothing for 'x'"),
        ({"x": torch.zeros(2), "y": torch.zeros(1)}, r"holds float32 \(1,\) for 'y' where this run needs nothing"),
    ],
)
def test_another_architecture_is_refused(found: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=f"there belongs to another architecture: it .*{said}"):
        require_same_tensors(Path("there"), {"x": torch.zeros(2)}, found)


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimiser_goes_on_bit_for_bit(fused: bool) -> None:
    def learner() -> tuple[nn.Linear, torch.optim.AdamW]:
        module = nn.Linear(9, 7)
        if not fused:
            module.weight = nn.Parameter(torch.zeros(9, 7).T)
        return module, build_optimizer(module, OptimConfig(lr=0.1, weight_decay=0.1))

    def moved(module: nn.Linear, optimizer: torch.optim.AdamW, seed: int) -> None:
        module(torch.randn(5, 9, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    first, second = learner(), learner()
    moved(*first, seed=1)
    second[0].load_state_dict(first[0].state_dict())
    load_optimizer(*second, {name: value.clone() for name, value in optimizer_tensors(*first).items()})
    moved(*first, seed=2)
    moved(*second, seed=2)
    assert torch.equal(first[0].weight, second[0].weight)
    assert first[1].state[first[0].weight]["step"] == second[1].state[second[0].weight]["step"] == 2
