"""Text encoders from transformers: CLIP, T5, UMT5 and Gemma, frozen, with embeddings of a fixed length."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from streamstill.codec.pretrained import DTYPES, DtypeName, fingerprint, frozen, library, require_fingerprint
from streamstill.config import require_one_of, require_positive


class _Family(NamedTuple):
    """The class of transformers that reads such weights, and whether padding is hidden from it and set to zero."""

    model: str
    masked: bool


_FAMILIES = {
    "clip": _Family("CLIPTextModel", masked=False),  # its padding was seen in training, and carries the summary
    "clip_text_model": _Family("CLIPTextModel", masked=False),
    "t5": _Family("T5EncoderModel", masked=True),
    "umt5": _Family("UMT5EncoderModel", masked=True),
    "gemma": _Family("GemmaModel", masked=True),
    "gemma2": _Family("Gemma2Model", masked=True),
    "gemma3_text": _Family("Gemma3TextModel", masked=True),
}
_EXTRA = "text"
_TOKENS = 128  # of those who could read more, if nothing is said


@dataclass(frozen=True, kw_only=True)
class TextModelConfig:
    """Where a text encoder lies, and what must be known of it while its weights are not loaded.

    ``TextModel.from_pretrained`` fills it in. ``source`` may be changed: the weights are known by ``fingerprint``.
    """

    kind: Literal["transformers"] = "transformers"
    source: str  # a folder, or a repository on a hub
    subfolder: str = ""  # where in it the encoder lies: "text_encoder" in a pipeline
    tokenizer: str = ""  # where in it the tokenizer lies: "tokenizer" in a pipeline
    family: str  # model_type of its config
    width: int
    tokens: int  # longer prompts are cut off
    fingerprint: str
    dtype: DtypeName = "float32"  # of the weights, and of embeddings on disk

    def __post_init__(self) -> None:
        require_one_of(self.family, tuple(_FAMILIES), "family of text encoders")
        require_one_of(self.dtype, tuple(DTYPES), "dtype")
        require_positive(self, "width", "tokens")

    @property
    def key(self) -> str:
        """What embeddings of this encoder are filed under: it differs where they do."""
        return f"{self.fingerprint}-{self.tokens}"


class TextModel:
    """A frozen text encoder of transformers behind ``TextEncoder``; no prompt at all is the empty one.

    Rows of padding are zero, except for CLIP, where they were part of the training.

    Args:
        loaded: model and tokenizer; without them, they are loaded when they are first needed.
    """

    def __init__(self, config: TextModelConfig, loaded: tuple[Any, Any] | None = None) -> None:
        self.config = config
        self._loaded = loaded

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokens: int | None = None,
        subfolder: str = "",
        tokenizer: str = "",
        dtype: DtypeName = "float32",
    ) -> "TextModel":
        """The text encoder in a folder or on a hub, loaded.

        Args:
            tokens: length of the embeddings; the default is all that CLIP can read, and 128 for the others.

        Raises:
            ModuleNotFoundError: transformers is not installed.
            OSError: there is no such model, or no tokenizer with it.
            ValueError: it is none of the known kinds, or cannot read as many tokens.
        """
        given = library("transformers", _EXTRA).AutoConfig.from_pretrained(str(source), subfolder=subfolder)
        require_one_of(given.model_type, tuple(_FAMILIES), "family of text encoders")
        loaded = _load(given.model_type, source, subfolder, tokenizer, dtype)
        longest = getattr(loaded[0].config, "max_position_embeddings", None)
        if tokens is not None and longest is not None and tokens > longest:
            raise ValueError(f"{source} reads at most {longest} tokens, got tokens={tokens}")
        config = TextModelConfig(
            source=str(source),
            subfolder=subfolder,
            tokenizer=tokenizer,
            family=given.model_type,
            width=loaded[0].config.hidden_size,
            tokens=tokens or (longest if longest is not None and longest < _TOKENS else _TOKENS),
            fingerprint=fingerprint(loaded[0]),
            dtype=dtype,
        )
        return cls(config, loaded)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TextModel":
        return self  # it never changes: copies of a student share it

    @property
    def text_width(self) -> int:
        """D of the embeddings."""
        return self.config.width

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._loaded is not None

    def encode(self, prompts: Sequence[str], device: torch.device | None = None) -> Tensor:
        """``text_BLD`` of the prompts, float32.

        Args:
            device: where the encoder shall work from now on; the default is where it is.

        Raises:
            ValueError: a prompt is empty.
        """
        require_words(prompts)
        return self._embed(list(prompts), device)

    def encode_nothing(self, batch: int, device: torch.device | None = None) -> Tensor:
        """``text_BLD`` of the empty prompt; ``batch`` equal rows."""
        return self._embed([""], device).expand(batch, -1, -1)

    @torch.no_grad()
    def _embed(self, prompts: list[str], device: torch.device | None) -> Tensor:
        model, tokenizer = self._at(device)
        read = tokenizer(
            prompts,
            padding="max_length",
            max_length=self.config.tokens,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(model.device)
        if not _FAMILIES[self.config.family].masked:
            return model(input_ids=read["input_ids"]).last_hidden_state.float()
        mask_BL = read["attention_mask"]
        text_BLD = model(input_ids=read["input_ids"], attention_mask=mask_BL).last_hidden_state.float()
        return text_BLD.masked_fill(mask_BL[..., None] == 0, 0)

    def _at(self, device: torch.device | None) -> tuple[Any, Any]:
        """Model and tokenizer, the model on this device."""
        if self._loaded is None:
            config = self.config
            loaded = _load(config.family, config.source, config.subfolder, config.tokenizer, config.dtype)
            require_fingerprint(fingerprint(loaded[0]), config.fingerprint, config.source)
            self._loaded = loaded
        model, tokenizer = self._loaded
        if device is not None and model.device != device:
            model.to(device)
        return model, tokenizer


def require_words(prompts: Sequence[str]) -> None:
    """Raise a ``ValueError`` if a prompt is empty."""
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError(f"the prompt {prompt!r} has no word in it; describe what the clip should show")


def _load(family: str, source: str | Path, subfolder: str, tokenizer: str, dtype: DtypeName) -> tuple[Any, Any]:
    transformers = library("transformers", _EXTRA)
    reader = transformers.AutoTokenizer.from_pretrained(str(source), subfolder=tokenizer, padding_side="right")
    if reader.pad_token is None:
        raise ValueError(f"the tokenizer in {source} has no padding token; give the one of a text encoder")
    model = getattr(transformers, _FAMILIES[family].model)
    return frozen(model.from_pretrained(str(source), subfolder=subfolder, dtype=DTYPES[dtype])), reader
