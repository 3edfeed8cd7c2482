"""Embeddings of prompts on disk, so that a text encoder need not be in memory while the student learns."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from streamstill.codec.pretrained import DTYPES
from streamstill.codec.text_models import TextModel, TextModelConfig, require_words
from streamstill.tensor_file import write_tensors

FORMAT = "1"
_BATCH = 16  # prompts that are encoded together


class TextCache:
    """Embeddings of one text encoder by prompt, a file for each, in its encoder's dtype.

    Any number of processes may read and add at the same time; a file is there whole or not at all. Other encoders
    have other subfolders, so they may share the folder.
    """

    def __init__(self, folder: Path, config: TextModelConfig) -> None:
        self.folder, self._config = folder / config.key, config

    def __contains__(self, prompt: str) -> bool:
        return self._file(prompt).is_file()

    def get(self, prompt: str) -> Tensor:
        """``text_LD`` of the prompt, float32, as it was added.

        Raises:
            KeyError: the prompt was not added.
            ValueError: its file is damaged, or of another format.
        """
        file = self._file(prompt)
        if not file.is_file():
            raise KeyError(f"the text cache {self.folder} has no embedding of {prompt!r}")
        try:
            with safe_open(file, framework="pt") as opened:
                text_LD, described = opened.get_tensor("text_LD"), opened.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); delete it, and it is made again") from error
        if described != {"format": FORMAT, "prompt": prompt}:
            raise ValueError(
                f"{file} is no embedding of {prompt!r} in format {FORMAT}; delete it, and it is made again"
            )
        return text_LD.float()

    def add(self, prompts: Sequence[str], text_BLD: Tensor) -> None:
        """Keep the embeddings of these prompts.

        Raises:
            OSError: they could not be written, for example to a full disk.
        """
        for prompt, text_LD in zip(prompts, text_BLD.detach().cpu(), strict=True):
            file = self._file(prompt)
            file.parent.mkdir(parents=True, exist_ok=True)
            mine = file.with_name(f"{os.getpid()}.{file.name}")  # two processes may add one prompt at a time
            kept = text_LD.to(DTYPES[self._config.dtype]).contiguous()
            write_tensors(mine, {"text_LD": kept}, {"format": FORMAT, "prompt": prompt})
            mine.replace(file)

    def _file(self, prompt: str) -> Path:
        name = hashlib.sha256(prompt.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"


class CachedText(nn.Module):
    """A student's text encoder that is not its own: embeddings come from a cache, or else from the encoder.

    The encoder is loaded when a prompt is met that the cache does not have. It is no part of the student's weights
    and does not learn. Embeddings lie where the student lies, in its dtype.

    Args:
        encoder: a loaded one; the default is the config's, loaded when it is first needed.
    """

    where: Tensor

    def __init__(self, config: TextModelConfig, encoder: TextModel | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder or TextModel(config)
        self.cache: TextCache | None = None
        self.register_buffer("where", torch.zeros(0), persistent=False)  # goes where the student goes

    def keep_in(self, folder: Path) -> None:
        """From now on, look embeddings up in this folder, and add those that it does not have."""
        self.cache = TextCache(folder, self.config)

    @property
    def text_width(self) -> int:
        """D of the embeddings."""
        return self.config.width

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """``text_BLD`` of the prompts.

        Raises:
            ValueError: a prompt is empty.
        """
        require_words(prompts)
        if self.cache is None:
            return self.encoder.encode(prompts, self.where.device).to(self.where)
        cache = self.cache
        for part in _parts([prompt for prompt in dict.fromkeys(prompts) if prompt not in cache]):
            cache.add(part, self.encoder.encode(part, self.where.device))
        return torch.stack([cache.get(prompt) for prompt in prompts]).to(self.where)

    @torch.no_grad()
    def encode_nothing(self, batch: int) -> Tensor:
        """``text_BLD`` of no prompt, for guidance; ``batch`` equal rows."""
        if self.cache is None:
            return self.encoder.encode_nothing(batch, self.where.device).to(self.where)
        if "" not in self.cache:
            self.cache.add([""], self.encoder.encode_nothing(1, self.where.device))
        return self.cache.get("").to(self.where).expand(batch, -1, -1)


def _parts(prompts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(prompts), _BATCH):
        yield prompts[start : start + _BATCH]
