"""From features of a clip to a score that knows the prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from streamstill.codec.text import WordEncoder, WordEncoderConfig

WORDS = WordEncoderConfig.tokens  # of a prompt, where nobody says how many are read


class PromptHead(nn.Module):
    """The score is a projection: ``w . f(clip) + e(prompt) . f(clip)``, so it asks whether the clip fits its prompt.

    It is computed in the head's own precision, also within autocast: scores of a prompt may differ by little beside the
    constant that they share, and that is all that counts.

    Args:
        words: of a prompt that are read; those beyond are cut off.
    """

    def __init__(self, features: int, text_width: int, *, words: int = WORDS) -> None:
        super().__init__()
        self.text = WordEncoder(WordEncoderConfig(width=text_width, tokens=words))
        self.prompt = nn.Linear(text_width, features)
        self.score = nn.Linear(features, 1)

    def forward(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B`` of features of shape (B, D), ``score_BK`` of (B, K, D)."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.score.weight.dtype)
            wanted = self.prompt(self.text.encode(prompts).mean(dim=1))
            if features.ndim == 3:
                wanted = wanted.unsqueeze(1)
            return self.score(features)[..., 0] + (features * wanted).sum(dim=-1) / wanted.shape[-1] ** 0.5
