"""Clips whose motion is known, prompts, and pretrained models of the real classes at tiny size."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROMPT, OTHER = "a red ball is dropped", "a blue box is thrown to the left"
MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int = 2, frames: int = 8, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    """Random pixels in [-1, 1]."""
    return torch.rand(count, frames, 3, height, width, generator=dice(seed)) * 2 - 1


def drifting(count: int, step: int, seed: int = 0) -> Tensor:
    """A bright square that moves ``step`` pixels a frame, from a random column."""
    clips = -torch.ones(count, 8, 3, 16, 16)
    for row, start in enumerate(torch.randint(0, 16, (count,), generator=dice(100 * seed + step)).tolist()):
        for frame in range(8):
            columns = [(start + step * frame + i) % 16 for i in range(4)]
            clips[row, frame, :, 6:10, columns] = 1
    return clips


def checkerboard(frames: int = 4) -> Tensor:
    """The finest pattern there is, of amplitude 1."""
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    return (((rows + columns) % 2) * 2.0 - 1).expand(1, frames, 3, 16, 16)


def vjepa2(transformers: Any) -> Any:
    """A V-JEPA 2 of three blocks."""
    return transformers.VJEPA2Model(
        transformers.VJEPA2Config(
            hidden_size=24,
            num_attention_heads=2,
            num_hidden_layers=3,
            crop_size=32,
            frames_per_clip=8,
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
        )
    )


def videomae(transformers: Any) -> Any:
    """A VideoMAE of three blocks."""
    return transformers.VideoMAEModel(
        transformers.VideoMAEConfig(
            hidden_size=24,
            num_attention_heads=2,
            num_hidden_layers=3,
            intermediate_size=32,
            image_size=32,
            num_frames=8,
            use_mean_pooling=False,
        )
    )


def byte_tokenizer(transformers: Any) -> Any:
    """A tokenizer whose words are bytes, with the marks of Qwen2-VL."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *MARKS]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(MARKS), pad_token=MARKS[1]
    )


def save_qwen2_vl(transformers: Any, folder: Path) -> None:
    """A Qwen2-VL of two blocks with its tokenizer, as a hub holds them; patches have 4 x 4 pixels and 2 frames."""
    tokenizer = byte_tokenizer(transformers)
    _, end, vision_start, vision_end, video = tokenizer.convert_tokens_to_ids(list(MARKS))
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = transformers.Qwen2VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024,
            "rope_parameters": rotary,
            "bos_token_id": end,
            "eos_token_id": end,
        },
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
        },
        video_token_id=video,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        image_token_id=len(tokenizer),  # of none
    )
    torch.manual_seed(0)
    transformers.Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
