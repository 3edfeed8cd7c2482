"""A video language model as a discriminator: Qwen2-VL with LoRA, and a linear score read after the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from streamstill.codec.pretrained import library
from streamstill.config import require_positive
from streamstill.training.discriminators.discriminator import Sees, require_clips
from streamstill.training.discriminators.pretrained import CLIP, evenly, model_type, normalised, resized

EXTRA = "encoders"
LORA_LAYERS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
BEFORE_THE_CLIP = "<|im_start|>user\n"
AFTER_THE_CLIP = "\nThe clip was asked for with this prompt: {prompt}\nDoes it look real, and does it obey?<|im_end|>\n"


@dataclass(frozen=True, kw_only=True)
class RewardVlmConfig:
    """Which model, how much of it learns, and how much of a clip it is shown."""

    model: str  # a folder, or the id of a repository
    kind: Literal["reward_vlm"] = "reward_vlm"
    rank: int = 64  # of the LoRA, on the linear layers of the language model; VideoReward's
    alpha: int = 128
    frames: int = 8  # evenly over the clip
    max_pixels: int = 200_704  # of a frame; larger ones are shrunk
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the frozen weights; what learns has float32

    def __post_init__(self) -> None:
        require_positive(self, "rank", "alpha", "frames", "max_pixels")


class RewardVlmDiscriminator(nn.Module):
    """The model reads a clip, then the prompt, then a question; the score is linear in the state of the last token.

    The trap: in VideoReward's template the tokens of visual and of motion quality stand before the prompt. A causal
    model has not read the prompt there, so a score read at them does not know it. Here the token that is read
    comes last.

    ``model`` is transformers' own module; it is frozen, and LoRA layers are put into it by peft.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: ``frames`` are not a multiple of those of the model's patches.
    """

    in_channels = 3
    sees: Sees = "pixels"

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, rank: int = 64, alpha: int = 128, frames: int = 8, max_pixels: int
    ) -> None:
        super().__init__()
        self.tokenizer, self.frames, self.max_pixels = tokenizer, frames, max_pixels
        self.model = _with_lora(model, rank, alpha)
        config: Any = model.config
        self.config, self.vision = config, config.vision_config
        if frames % self.vision.temporal_patch_size:
            raise ValueError(f"frames must be a multiple of {self.vision.temporal_patch_size}, got {frames}")
        self.score = nn.Linear(config.text_config.hidden_size, 1, bias=False)

    @classmethod
    def from_pretrained(cls, config: RewardVlmConfig) -> "RewardVlmDiscriminator":
        """With the weights of a Qwen2-VL in a folder or a repository; the LoRA begins as nothing, the score is fresh.

        Raises:
            ModuleNotFoundError: transformers or peft is not installed.
            OSError: there is no such model.
            ValueError: it is no Qwen2-VL.
        """
        model_type(config.model, ["qwen2_vl"], extra=EXTRA)
        transformers = library("transformers", EXTRA)
        model = transformers.Qwen2VLModel.from_pretrained(config.model, dtype=getattr(torch, config.dtype))
        tokenizer = transformers.AutoTokenizer.from_pretrained(config.model)
        size = {"frames": config.frames, "max_pixels": config.max_pixels}
        return cls(model, tokenizer, rank=config.rank, alpha=config.alpha, **size)

    def forward(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B`` of pixels in [-1, 1].

        Raises:
            ValueError: the clips have other axes or channels, or there is not one prompt for each.
        """
        states_BSD, length_B = self.states(clips_BFCHW, prompts)
        last_BD = states_BSD[torch.arange(len(prompts), device=length_B.device), length_B - 1]
        with torch.autocast(last_BD.device.type, enabled=False):  # what counts is the little in which scores differ
            return self.score(last_BD.to(self.score.weight.dtype))[:, 0]

    def states(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """``states_BSD`` of every token of the clip, the prompt and the question; and how many each clip has."""
        require_clips(clips_BFCHW, prompts, channels=self.in_channels)
        patches, grid = self._patches(clips_BFCHW)
        ids_BS, length_B = self._ids(prompts, int(grid.prod()) // self.vision.spatial_merge_size**2)
        ids_BS = ids_BS.to(patches.device)
        states_BSD = self.model(
            input_ids=ids_BS,
            mm_token_type_ids=2 * (ids_BS == self.config.video_token_id).int(),
            pixel_values_videos=patches,
            video_grid_thw=grid.expand(len(prompts), 3),
            use_cache=False,
        ).last_hidden_state
        return states_BSD, length_B.to(patches.device)

    def _ids(self, prompts: Sequence[str], seen: int) -> tuple[Tensor, Tensor]:
        """Token ids, padded at the end, where a causal model does not look; and the lengths without the padding."""
        video = [self.config.vision_start_token_id, *[self.config.video_token_id] * seen]
        start = [*self._words(BEFORE_THE_CLIP), *video, self.config.vision_end_token_id]
        rows = [torch.tensor([*start, *self._words(AFTER_THE_CLIP.format(prompt=prompt))]) for prompt in prompts]
        return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])

    def _words(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _patches(self, clips_BFCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of patches as Qwen2-VL takes them, merged cells side by side; and the grid (frames, rows, columns)."""
        patch, merge, frames = self.vision.patch_size, self.vision.spatial_merge_size, self.vision.temporal_patch_size
        height, width = fitting_size(*clips_BFCHW.shape[-2:], step=patch * merge, max_pixels=self.max_pixels)
        fitted = normalised(resized(evenly(clips_BFCHW, self.frames), height, width), CLIP)
        grid = torch.tensor([self.frames // frames, height // patch, width // patch], device=fitted.device)
        cells = fitted.unflatten(4, (-1, merge, patch)).unflatten(3, (-1, merge, patch)).unflatten(1, (-1, frames))
        return cells.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).flatten(0, 5).flatten(1), grid


def fitting_size(height: int, width: int, *, step: int, max_pixels: int) -> tuple[int, int]:
    """Multiples of ``step`` of nearly the same shape and at most ``max_pixels``, but at least ``step`` each.

    Raises:
        ValueError: not even one step by one step is allowed.
    """
    if max_pixels < step * step:
        raise ValueError(f"max_pixels is {max_pixels}, this model needs at least {step * step}")
    scale = min(1.0, (max_pixels / (height * width)) ** 0.5)
    short = max(step, int(min(height, width) * scale) // step * step)
    long = max(step, min(int(max(height, width) * scale), max_pixels // short) // step * step)
    return (short, long) if height <= width else (long, short)


def _with_lora(model: nn.Module, rank: int, alpha: int) -> nn.Module:
    peft = library("peft", "lora")
    lora = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=LORA_LAYERS)
    adapted: nn.Module = peft.inject_adapter_in_model(lora, model.requires_grad_(False))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small steps are lost in half precision
    return adapted
