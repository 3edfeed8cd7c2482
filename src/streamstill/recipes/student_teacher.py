"""One of our students as an open teacher: its clips in one piece, its velocities in the bidirectional mode."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamstill.codec.video import to_frames
from streamstill.flow.guidance import guided
from streamstill.flow.samplers import VelocityFn
from streamstill.streaming.whole import sample_whole
from streamstill.student.student import Student
from streamstill.types import Clip, ClipRequest


@dataclass(frozen=True, eq=False)
class StudentTeacher:
    """A student whose weights we hold, made to teach: bidirectional, in as many steps and as guided as it is told.

    The request's seed is that of the noise, so one seed and one prompt are one clip.
    """

    student: Student
    steps: int = 16
    guidance: float = 1.0

    @property
    def name(self) -> str:
        """The fingerprint of the weights, and how they are sampled."""
        shift = self.student.config.sampling.shift
        return f"student@{self.student.fingerprint}/steps={self.steps},shift={shift:g},guidance={self.guidance:g}"

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Latent frames, C, H, W of the student's own geometry."""
        return self.student.latent_shape

    def generate(self, request: ClipRequest) -> Clip:
        """The clip of :meth:`latents`, decoded."""
        with torch.no_grad():
            pixels_BFCHW, _ = self.student.codec.decode(self.latents([request]))
        provenance = {"teacher": self.name, "prompt": request.prompt, "seed": str(request.seed)}
        return Clip(frames_FCHW=to_frames(pixels_BFCHW[0]), fps=request.fps, provenance=provenance)

    @torch.no_grad()
    def latents(self, requests: Sequence[ClipRequest]) -> Tensor:
        """Clips by :func:`sample_whole`, one after the other.

        Raises:
            ValueError: a request has another size than the student's clips.
        """
        return torch.cat([self._latents(request) for request in requests])

    @torch.no_grad()
    def velocity(self, x_t_BFCHW: Tensor, t_B: Tensor, prompts: Sequence[str]) -> Tensor:
        """The bidirectional velocity, guided if guidance is not 1."""
        network, text_BLD = self.student.network, self.student.encode_prompts(prompts)
        nothing_BLD = self.student.encode_nothing(len(prompts))

        def given(text_BLD: Tensor) -> VelocityFn:
            return lambda x_t, t: network.velocity_bidirectional(x_t, t, text_BLD)

        follow = guided(given(text_BLD), given(nothing_BLD), self.guidance)
        return follow(x_t_BFCHW.to(text_BLD), t_B.to(text_BLD)).to(x_t_BFCHW)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """``text_BLD`` of the student's own encoder."""
        return self.student.encode_prompts(prompts)

    def _latents(self, request: ClipRequest) -> Tensor:
        wanted = self.student.config.geometry
        if request.geometry != wanted:
            raise ValueError(
                f"this teacher makes clips of {wanted} and was asked for {request.geometry}; ask for those"
            )
        student = self.student
        return sample_whole(
            student.network,
            student.encode_prompts([request.prompt]),
            frames=student.latent_shape[0],
            latent_shape=student.latent_shape[1:],
            sampling=replace(student.config.sampling, steps=self.steps),
            generator=torch.Generator().manual_seed(request.seed),
            guidance=self.guidance,
            empty_text_BLD=student.encode_nothing(1),
        )
