"""A local pipeline of flow matching as an open teacher: its latents, its velocities, its text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streamstill.teachers.pipelines.clips import PipelineTeacher
from streamstill.teachers.pipelines.config import PipelineConfig
from streamstill.teachers.pipelines.families import (
    LatentStatistics,
    OpenForm,
    compression,
    latent_statistics,
    open_form,
    parameters_of,
    transformer_of,
)
from streamstill.teachers.pipelines.question import asking
from streamstill.teachers.teacher import Teacher
from streamstill.types import Clip, ClipRequest, Geometry

_REMEMBERED = 16  # prompts whose embeddings are kept, on the device that made them


@dataclass(frozen=True, eq=False)
class OpenPipelineTeacher:
    """The clips of a :class:`PipelineTeacher`, and what its network says about any noised clip.

    Latents are those that the network sees: the VAE's, normalised by :attr:`statistics`. One clip is asked at a time.
    """

    clips: PipelineTeacher
    form: OpenForm
    _texts: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """That of the clips."""
        return self.clips.name

    @property
    def statistics(self) -> LatentStatistics:
        """How its latents follow from those of its VAE."""
        return latent_statistics(self.clips.pipe)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Latent frames, C, H, W of clips of the config's geometry.

        Raises:
            ValueError: the config has no geometry.
        """
        size, (frames, pixels) = self._size, compression(self.clips.pipe)
        channels = transformer_of(self.clips.pipe).config.out_channels
        return (size.frames - 1) // frames + 1, channels, size.height // pixels, size.width // pixels

    def generate(self, request: ClipRequest) -> Clip:
        """The clip of :meth:`latents`, decoded by the pipeline."""
        return self.clips.generate(request)

    @torch.no_grad()
    def latents(self, requests: Sequence[ClipRequest]) -> Tensor:
        """The last latents of the pipeline's own sampling, float32 on the CPU.

        Raises:
            ValueError: a request has another size than the config's geometry.
        """
        return torch.cat([self._latents(request) for request in requests])

    @torch.no_grad()
    def velocity(self, x_t_BFCHW: Tensor, t_B: Tensor, prompts: Sequence[str]) -> Tensor:
        """The network's answer in the pipeline's loop, guidance and choice of expert included."""
        rows = zip(x_t_BFCHW.split(1), t_B.tolist(), prompts, strict=True)
        return torch.cat([self._velocity(x_t, t, prompt) for x_t, t, prompt in rows]).to(x_t_BFCHW)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """``text_BLD`` of the pipeline's first text encoder, float32 on the CPU; zero where a prompt has ended."""
        return torch.cat([self._embedding(prompt) for prompt in prompts])

    @property
    def _size(self) -> Geometry:
        geometry = self.clips.config.geometry
        if geometry is None:
            raise ValueError(
                "an open teacher makes latents of one size; set geometry to that of the clips to learn from"
            )
        return self.clips.size_for(geometry)

    def _latents(self, request: ClipRequest) -> Tensor:
        size, wanted = self._size, self.clips.config.geometry
        if request.geometry != wanted:
            raise ValueError(
                f"the latents of this teacher are of clips of {wanted} and it was asked for {request.geometry}; "
                "ask for those"
            )
        generator = torch.Generator().manual_seed(request.seed)
        latents = self.clips.call(size, prompt=request.prompt, generator=generator, output_type="latent")
        return self.form.unpack(latents, self.latent_shape).float().cpu()

    def _velocity(self, x_t_BFCHW: Tensor, t: float, prompt: str) -> Tensor:
        given = {"num_inference_steps": 1, "output_type": "latent", "latents": self.form.pack(x_t_BFCHW.float())}
        text, negative = self._text(prompt), {"negative_prompt": None} if self._negative_is_text else {}
        with asking(self.clips.pipe, t) as question:
            self.clips.call(self._size, **given, **text, **negative)
        assert question.answer is not None  # every loop makes its steps
        return self.form.unpack(question.answer, self.latent_shape).to(x_t_BFCHW.device)

    @property
    def _negative_is_text(self) -> bool:
        """Whether what is to be avoided is among the embeddings, and so must not be given in words as well."""
        return "negative_prompt_embeds" in self.form.text

    def _embedding(self, prompt: str) -> Tensor:
        text = self._text(prompt)
        embedding_BLD = text["prompt_embeds"].float().cpu()
        mask_BL = text.get("prompt_attention_mask")
        return embedding_BLD if mask_BL is None else embedding_BLD * mask_BL.cpu().float()[..., None]

    def _text(self, prompt: str) -> dict[str, Tensor]:
        """Its embeddings under the names of the pipeline's call; the last few prompts are remembered."""
        if prompt not in self._texts:
            while len(self._texts) >= _REMEMBERED:
                del self._texts[next(iter(self._texts))]
            self._texts[prompt] = self._encoded(prompt)
        return self._texts[prompt]

    def _encoded(self, prompt: str) -> dict[str, Tensor]:
        pipe, config = self.clips.pipe, self.clips.config
        defaults = parameters_of(pipe)  # encode_prompt's own differ from those of the call
        names: tuple[str, ...] = ("max_sequence_length", "prompt_template")
        chosen = {name: defaults[name] for name in names if name in defaults}
        chosen |= {name: value for name, value in config.arguments.items() if name in chosen}
        if self._negative_is_text:
            chosen["negative_prompt"] = config.negative_prompt
        given = pipe.encode_prompt(prompt, **chosen)
        return {name: one for name, one in zip(self.form.text, given, strict=True) if one is not None}


def pipeline_teacher(config: PipelineConfig) -> Teacher:
    """The pipeline of the config: an :class:`OpenPipelineTeacher` where its network is known to give velocities.

    Raises:
        ModuleNotFoundError, ValueError: see :meth:`PipelineTeacher.load`.
    """
    clips = PipelineTeacher.load(config)
    form = open_form(clips.pipe)
    return clips if form is None else OpenPipelineTeacher(clips, form)
