"""A velocity pass as an ExecuTorch program: XNNPACK takes what it can, portable kernels run the rest."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.search.probes import Inputs
from streamstill.search.programs import FlatVelocity, quiet, require_packages, require_parity
from streamstill.state import ConvCache, map_tensors, tensors_of
from streamstill.student.local import CausalConv, LocalChunk
from streamstill.student.sandwich import SandwichDiT

MOST_AXES = 6  # of a tensor of XNNPACK (XNN_MAX_TENSOR_DIMS)


class PlaneConvs(nn.Module):
    """A ``CausalConv`` whose 3-D convolution is a sum of 2-D ones, for XNNPACK has no other; a ``Mixer``.

    A frame of the kernel meets all frames that it slides over as so many pictures. The weights are the original's.
    """

    def __init__(self, original: CausalConv) -> None:
        super().__init__()
        self.original = original

    def empty(self, batch: int, height: int, width: int, like: Tensor) -> ConvCache:
        """The state before the first chunk."""
        return self.original.empty(batch, height, width, like)

    def project(self, x_RFHWD: Tensor) -> LocalChunk:
        """The convolution's input."""
        return self.original.project(x_RFHWD)

    def mix(self, chunk: LocalChunk, past: ConvCache) -> Tensor:
        """What the original answers, to float tolerance."""
        conv, kernel = self.original.depthwise, self.original.kernel
        rows, frames = chunk.x_RFHWD.shape[:2]
        seen_RFDHW = torch.cat([past.frames_BFHWD, chunk.x_RFHWD], dim=1).permute(0, 1, 4, 2, 3)
        planes = [
            F.conv2d(
                seen_RFDHW[:, frame : frame + frames].flatten(0, 1),
                conv.weight[:, :, frame],
                conv.bias if frame == 0 else None,
                padding=kernel // 2,
                groups=self.original.width,
            )
            for frame in range(kernel)
        ]
        mixed_RFDHW = sum(planes[1:], planes[0]).unflatten(0, (rows, frames))
        return self.original.channel_mix(mixed_RFDHW.permute(0, 1, 3, 4, 2))

    def remember(self, chunk: LocalChunk, past: ConvCache) -> ConvCache:
        """The last frames of the convolution's input."""
        return self.original.remember(chunk, past)


def with_plane_convs(network: SandwichDiT) -> SandwichDiT:
    """A copy of a network that computes the same without 3-D convolutions; the given one stays as it is."""
    copied = copy.deepcopy(network)
    for parent in list(copied.modules()):
        for name, part in parent.named_children():
            if isinstance(part, CausalConv):
                setattr(parent, name, PlaneConvs(part))
    return copied


def executorch_pass(network: SandwichDiT, inputs: Inputs) -> Callable[[], list[Tensor]]:
    """The same pass as an ExecuTorch program on the CPU, with as many threads as torch has.

    A call answers with a list of one tensor, the velocity of shape (B, F, C, H, W). What does not depend on the
    inputs (tables of positions) is computed once, when the program is made. All programs of a process share their
    threads: with another number of them, programs made before must not run any more.

    Raises:
        ModuleNotFoundError: executorch is not installed.
        RuntimeError: the program does not compute what the network computes.
    """
    require_packages("executorch", extra="executorch")
    # A copy, and clones, for an exporter cannot trace tensors that were made in inference mode.
    with torch.inference_mode(False), torch.no_grad(), quiet():
        feeds = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors_of(inputs)]
        given = iter(feeds)
        flat = FlatVelocity(with_plane_convs(network), map_tensors(lambda _: next(given), inputs))
        program = _loaded(_lowered(torch.export.export(flat.eval(), tuple(feeds))))

    def run() -> list[Tensor]:
        answer: list[Tensor] = program.load_method("forward").execute(feeds)  # it is loaded once and kept
        return answer

    require_parity(run()[0], network, inputs, program="ExecuTorch")
    return run


def _lowered(exported: torch.export.ExportedProgram) -> bytes:
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    folded = constant_prop_pass(exported.run_decompositions({}))
    for name, tensor in folded.constants.items():
        if isinstance(tensor, Tensor):  # XNNPACK would read a view from the start of its storage
            folded.constants[name] = tensor.clone(memory_format=torch.contiguous_format)
    return to_edge_transform_and_lower(folded, partitioner=[_partitioner()]).to_executorch().buffer


def _loaded(buffer: bytes) -> Any:
    """An ``executorch.runtime.Program`` whose pass is ready to run."""
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    if portable_lib._threadpool_get_thread_count() != torch.get_num_threads():
        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
    program = Runtime.get().load_program(buffer)
    program.load_method("forward")
    return program


def _partitioner() -> Any:
    """XNNPACK's own choice of operations but those on tensors with too many axes, which it takes and fails to load."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    partitioner = XnnpackPartitioner()
    for config in partitioner.target_partitioner_configs.values():
        config.get_partition = partial(_few_axes, config.get_partition)
    return partitioner


def _few_axes(chosen: Callable[..., list[torch.fx.Node]], node: torch.fx.Node, exported: Any) -> list[torch.fx.Node]:
    """Nodes that XNNPACK would take with this one; none if a tensor of theirs has too many axes."""
    nodes = chosen(node, exported)
    values = [one.meta.get("val") for taken in nodes for one in (taken, *taken.all_input_nodes)]
    too_many = any(isinstance(value, Tensor) and value.ndim > MOST_AXES for value in values)
    return [] if too_many else nodes
