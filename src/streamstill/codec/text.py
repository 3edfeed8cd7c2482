"""Prompts to embeddings."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.config import require_positive


class TextEncoder(Protocol):
    """Prompts to embeddings of a fixed length, so that shapes never depend on the words."""

    @property
    def text_width(self) -> int:
        """D of the embeddings."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """``text_BLD``: one row per prompt."""
        ...

    def encode_nothing(self, batch: int) -> Tensor:
        """``text_BLD`` of no prompt at all, for guidance; ``batch`` equal rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class WordEncoderConfig:
    """Size of the small trainable text encoder."""

    width: int = 64
    tokens: int = 24
    buckets: int = 512
    heads: int = 4

    def __post_init__(self) -> None:
        require_positive(self, "width", "tokens", "buckets", "heads")
        if self.width % self.heads:
            raise ValueError(f"the text encoder's width {self.width} cannot be divided among {self.heads} heads")


class WordEncoder(nn.Module):
    """A small trainable text encoder: hashed words, learned positions, one transformer layer.

    A word is the sum of two rows, found by two independent hashes: any word of any language has an embedding
    without a vocabulary file, and two words are confused only if both hashes collide. Words beyond
    ``config.tokens`` are cut off. Case and punctuation do not matter.
    """

    def __init__(self, config: WordEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.ModuleList(nn.Embedding(config.buckets + 1, config.width, padding_idx=0) for _ in range(2))
        self.positions = nn.Parameter(torch.randn(config.tokens, config.width) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(3))
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 2 * config.width), nn.GELU(), nn.Linear(2 * config.width, config.width)
        )

    @property
    def text_width(self) -> int:
        """D of the embeddings."""
        return self.config.width

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """``text_BLD`` of the prompts.

        Raises:
            ValueError: a prompt has no word in it.
        """
        return self._embed(torch.tensor([self._buckets(prompt) for prompt in prompts], device=self.positions.device))

    def encode_nothing(self, batch: int) -> Tensor:
        """``text_BLD`` of no prompt: padding alone, through the same layers; ``batch`` equal rows."""
        return self._embed(self.positions.new_zeros(batch, 2, self.config.tokens, dtype=torch.int64))

    def _embed(self, rows: Tensor) -> Tensor:
        """The embeddings of two buckets for every word, shape (B, 2, L); bucket 0 is padding."""
        text_BLD = self.words[0](rows[:, 0]) + self.words[1](rows[:, 1]) + self.positions
        text_BLD = text_BLD + self._attend(self.norms[0](text_BLD))
        text_BLD = text_BLD + self.mlp(self.norms[1](text_BLD))
        return self.norms[2](text_BLD)

    def _attend(self, text_BLD: Tensor) -> Tensor:
        qkv = self.qkv(text_BLD).unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BNLE = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.out(mixed_BNLE.transpose(1, 2).flatten(2))

    def _buckets(self, prompt: str) -> list[list[int]]:
        words = re.findall(r"\w+", prompt.lower())[: self.config.tokens]
        if not words:
            raise ValueError(f"the prompt {prompt!r} has no word in it; describe what the clip should show")
        empty = [0] * (self.config.tokens - len(words))
        return [[_bucket(word, salt, self.config.buckets) for word in words] + empty for salt in ("a", "b")]


def _bucket(word: str, salt: str, buckets: int) -> int:
    """1..buckets; the same in every process, on every machine."""
    digest = hashlib.blake2b(word.encode(), digest_size=8, salt=salt.encode()).digest()
    return 1 + int.from_bytes(digest, "big") % buckets
