"""What exporting targets share: the flat call is the velocity pass, and quiet is quiet only inside."""

import importlib.util
import logging
import warnings
from dataclasses import replace

import pytest
import torch

from streamstill.search.probes import ProbePool
from streamstill.search.programs import TOLERANCE, FlatVelocity, quiet, require_packages, require_parity
from streamstill.state import tensors_of
from streamstill.student.costs import Workload
from streamstill.student.presets import preset

SMALL = replace(preset("nano"), width=64, latent_channels=4)
WORK = Workload(height=4, width=4, frames=2, text_tokens=3)


def test_the_flat_call_is_the_velocity_pass() -> None:
    pool = ProbePool(SMALL, WORK, ("LSFA",), device=torch.device("cpu"), dtype=torch.float32)
    network, inputs = pool.network("LSFA")
    with torch.inference_mode():
        assert torch.equal(FlatVelocity(network, inputs)(*tensors_of(inputs)), network.velocity(*inputs))


def test_the_flat_call_uses_what_it_is_given_and_not_what_it_was_made_with() -> None:
    pool = ProbePool(SMALL, WORK, ("LS",), device=torch.device("cpu"), dtype=torch.float32)
    network, inputs = pool.network("LS")
    others = [tensor * 0.5 if tensor.is_floating_point() else tensor for tensor in tensors_of(inputs)]
    x_t, t, text, _ = inputs
    with torch.inference_mode():
        found = FlatVelocity(network, inputs)(*others)
        same_state = network.velocity(x_t * 0.5, t * 0.5, text * 0.5, inputs[3])
    assert not torch.equal(found, same_state)


def test_packages_that_are_there_are_not_asked_for_and_the_first_that_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_packages("torch", "json", extra="onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("b") else object())
    with pytest.raises(ModuleNotFoundError, match=r'^b1 is not installed; run: pip install "streamstill\[some\]"$'):
        require_packages("a", "b1", "b2", extra="some")


def test_a_program_must_answer_the_networks_velocity() -> None:
    pool = ProbePool(SMALL, WORK, ("LS",), device=torch.device("cpu"), dtype=torch.float32)
    network, inputs = pool.network("LS")
    with torch.inference_mode():
        velocity = network.velocity(*inputs)
    largest = velocity.abs().max()
    require_parity(velocity, network, inputs, program="Known")
    require_parity(velocity + 0.5 * TOLERANCE * largest, network, inputs, program="Known")
    for wrong in (velocity + 2 * TOLERANCE * largest, -velocity, torch.full_like(velocity, float("nan"))):
        with pytest.raises(
            RuntimeError, match="the Known program of a network LS computes something else: it is off by"
        ):
            require_parity(wrong, network, inputs, program="Known")


def test_warnings_and_logs_are_silent_inside_only(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("an exporter")
    with quiet():
        log.warning("inside")
        warnings.warn("inside", stacklevel=1)
        log.error("an error")
    log.warning("outside")
    assert [record.message for record in caplog.records] == ["an error", "outside"]
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", stacklevel=1)


def test_logs_come_back_after_an_exporter_has_failed() -> None:
    before = logging.root.manager.disable
    with pytest.raises(ZeroDivisionError), quiet():
        raise ZeroDivisionError
    assert logging.root.manager.disable == before
