"""Pipelines of diffusers' own classes with tiny random weights, built in code: nothing is downloaded."""

from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

WORDS = 32  # features of every text encoder


def tokenizer(end: str = "</s>", **more: Any) -> Any:
    """One token for each byte, and an end."""
    names = ["<pad>", end, "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: number for number, name in enumerate(names)}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise, pad_token="<pad>", eos_token=end, unk_token="<unk>", **more
    )


def t5() -> Any:
    config = transformers.T5Config(vocab_size=300, d_model=WORDS, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    return transformers.T5EncoderModel(config)


def wan_transformer(channels: int = 16) -> Any:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=16,
        text_dim=WORDS,
        freq_dim=32,
        ffn_dim=48,
        num_layers=1,
        rope_max_seq_len=64,
    )


def wan_vae() -> Any:
    downsample = [False, True, True]
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=downsample
    )


def wan_parts() -> dict[str, Any]:
    config = transformers.UMT5Config(vocab_size=300, d_model=WORDS, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    return {
        "tokenizer": tokenizer(model_max_length=512),
        "text_encoder": transformers.UMT5EncoderModel(config),
        "vae": wan_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def wan() -> Any:
    return diffusers.WanPipeline(**wan_parts(), transformer=wan_transformer())


def wan_of_two() -> Any:
    """As Wan 2.2: one expert for the noisy times, another one below the boundary."""
    experts = {"transformer": wan_transformer(), "transformer_2": wan_transformer()}
    return diffusers.WanPipeline(**wan_parts(), **experts, boundary_ratio=0.875)


def wan_image() -> Any:
    """As Wan 2.2's image to video: the first frame comes as further channels, 4 of them a mask."""
    return diffusers.WanImageToVideoPipeline(**wan_parts(), transformer=wan_transformer(36))


def ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=WORDS,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    with torch.no_grad():
        vae.latents_mean.normal_()
        vae.latents_std.uniform_(0.5, 2)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    parts = {"tokenizer": tokenizer(model_max_length=128), "text_encoder": t5(), "vae": vae}
    return diffusers.LTXPipeline(**parts, transformer=transformer, scheduler=scheduler)


def hunyuan() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        text_embed_dim=WORDS,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    llama = transformers.LlamaConfig(
        vocab_size=300, hidden_size=WORDS, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2
    )
    clip = transformers.CLIPTextConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=8,
        eos_token_id=1,
        bos_token_id=0,
    )
    return diffusers.HunyuanVideoPipeline(
        text_encoder=transformers.LlamaModel(llama),
        tokenizer=tokenizer(model_max_length=1024, padding_side="right"),
        text_encoder_2=transformers.CLIPTextModel(clip),
        tokenizer_2=tokenizer(model_max_length=77),
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def cogvideox() -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WORDS,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        patch_size=2,
        max_text_seq_length=64,
        use_rotary_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")
    parts = {"tokenizer": tokenizer(model_max_length=226), "text_encoder": t5(), "vae": vae}
    return diffusers.CogVideoXPipeline(**parts, transformer=transformer, scheduler=scheduler)


def unknown() -> Any:
    """SkyReels-V2: a class of which nothing is known here."""
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=WORDS,
        freq_dim=32,
        ffn_dim=48,
        num_layers=1,
        rope_max_seq_len=64,
    )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler = diffusers.UniPCMultistepScheduler(**flow)
    return diffusers.SkyReelsV2Pipeline(**{**wan_parts(), "scheduler": scheduler}, transformer=transformer)


BUILDERS = {
    "wan": wan,
    "wan-of-two": wan_of_two,
    "wan-image": wan_image,
    "ltx": ltx,
    "hunyuan": hunyuan,
    "cogvideox": cogvideox,
    "unknown": unknown,
}


def build(family: str, *, seed: int = 0) -> Any:
    """A pipeline of this family; random weights that differ with the seed, and no bias or gate left at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = BUILDERS[family]()
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                _shake(part)
    return pipe


def _shake(part: nn.Module) -> None:
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
