"""Random models of the real classes of diffusers and transformers, so small that a test takes milliseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

PROMPTS = ["a red ball", "a blue box topples over the edge"]
WORDS = ["<pad>", "<unk>", *sorted({word for prompt in PROMPTS for word in prompt.split()})]


def wan(**given: Any) -> Any:
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
    sizes = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    return diffusers.AutoencoderKLWan(**{**sizes, **statistics, **given})


def wan_2_2() -> Any:
    """The residual autoencoder of Wan 2.2, which sees squares of 2x2 pixels: 4x16x16."""
    pixels = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
    return wan(is_residual=True, decoder_base_dim=8, **pixels)


def ltx(**given: Any) -> Any:
    widths, layers = (8, 8, 8, 8), (1, 1, 1, 1, 1)
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=layers,
        decoder_layers_per_block=layers,
        patch_size=2,
        scaling_factor=0.7,
        **given,
    )


def noisy_ltx() -> Any:
    """As LTX-Video 0.9.1: the decoder draws noise and is told a time."""
    return ltx(timestep_conditioning=True, decoder_inject_noise=(True,) * 5)


def hunyuan() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


def dc() -> Any:
    widths, layers, scales = (8, 8, 8), (1, 1, 1), ((), (), ())
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        scaling_factor=0.5,
    )


def saved_vae(build: Callable[[], Any], folder: Path, *, seed: int = 0) -> Path:
    """The folder, with a random autoencoder in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build().save_pretrained(folder)
    return folder


def clip_text() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(
        **sizes, vocab_size=len(WORDS), max_position_embeddings=8, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return transformers.CLIPTextModel(config)


def t5(kind: str = "T5") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def umt5() -> Any:
    return t5("UMT5")


def gemma(kind: str = "Gemma2") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
    )
    return getattr(transformers, f"{kind}Model")(config)


def gemma_3() -> Any:
    return gemma("Gemma3Text")


def saved_text(build: Callable[[], Any], folder: Path, *, seed: int = 0, tokenizer: str = "", model: str = "") -> Path:
    """The folder, with a random text encoder and a tokenizer of a few words in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build().save_pretrained(folder / model)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    fast.save_pretrained(folder / tokenizer)
    return folder
