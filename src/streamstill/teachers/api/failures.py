"""What a service's bad answer means: try again, refused or hopeless, in one sentence that shows no key."""

import email.utils
import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from streamstill.teachers.api.jobs import ApiError, Hopeless, NoFile, Refused, TryAgain

Doing: TypeAlias = Literal["submit", "poll", "download"]

_LONGEST_QUOTE = 200  # characters of what a service said that a sentence repeats
_REFUSAL = (
    *("moderation", "content_policy", "content policy", "content_filter", "content filter", "policy violation"),
    *("policy_violation", "safety", "flagged", "nsfw", "prohibited content", "prompt was blocked", "prompt blocked"),
)
_NO_QUOTA = (  # "quota" alone is also said of requests in a minute
    *("insufficient_quota", "exceeded your current quota", "insufficient credit", "insufficient balance"),
    *("billing", "payment required"),
)
_NO_MODEL = ("model_not_found", "invalid_model", "model not found", "unknown model", "no such model", "invalid model")
_NEVER_ACCEPTED = (
    500,
    501,
    503,
    529,
)  # the service itself says no; behind other 5xx a gateway may have lost the answer
_WAIT = (408, 409, 425, 429)


def read_key(variable: str) -> str:
    """The key in this environment variable.

    Raises:
        Hopeless: it is not set, empty, or cannot be a key.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise Hopeless(f"no key: set the environment variable {variable} to the key that the service gave you")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise Hopeless(f"the environment variable {variable} holds characters that no key has; set it again")
    return key


def cleaned(text: str, secret: str | None) -> str:
    """The first words of what a service said: without the key, tags and control characters, on one line."""
    for hidden in {secret, quote(secret, safe="")} if secret else ():
        text = text.replace(hidden, "***")
    plain = re.sub(r"<[^>]*>", " ", re.sub(r"(?is)<(script|style).*?</\1>", " ", text))
    words = " ".join("".join(c if c.isprintable() else " " for c in plain).split())
    return words if len(words) <= _LONGEST_QUOTE else words[:_LONGEST_QUOTE] + "..."


def message(text: str) -> str:
    """The error message in an answer: of the usual JSON shapes the message and code, of anything else the text."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return said(answer.get("error") or answer.get("detail") or answer.get("message")) if _is_map(answer) else text


def said(error: Any) -> str:
    """The words in an error field: a text, an object with message and code, or anything else as JSON."""
    if error is None:
        return ""
    if isinstance(error, str):
        return error
    if _is_map(error) and ("message" in error or "code" in error):
        code, words = error.get("code"), error.get("message")
        return f"{words or code} ({code})" if words and isinstance(code, str) else str(words or code)
    return json.dumps(error)


def is_refusal(text: str) -> bool:
    """Whether a service's words say that it will not show this."""
    return _has(text, _REFUSAL)


def retry_after(value: str | None, *, now: float | None = None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None where it says nothing."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value.strip()):
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, moment.timestamp() - (time.time() if now is None else now))


def failure(
    status: int, headers: Mapping[str, str], text: str, *, doing: Doing, service: str, variable: str | None
) -> ApiError:
    """The error for an answer with a status that is not 2xx; ``text`` is cleaned already."""
    told = f"{status}: {text}" if text else str(status)
    if status == 401:
        key = f"the key in the environment variable {variable}" if variable else "a request without a key"
        cure = f"set {variable} to a valid key" if variable else "name the variable of the key in key_variable"
        return Hopeless(f"{service} does not accept {key} ({told}); {cure}")
    if status == 402 or (status in (400, 403, 429) and _has(text, _NO_QUOTA)):
        return Hopeless(f"{service} says that there is no quota or credit left ({told}); add some and run again")
    if status in _WAIT or status >= 500:
        maybe = doing == "submit" and status >= 500 and status not in _NEVER_ACCEPTED
        after = retry_after(headers.get("retry-after"))
        return TryAgain(f"{service} could not answer now ({told})", after=after, maybe_accepted=maybe)
    return _refusal(status, told, doing, service)


def _refusal(status: int, told: str, doing: Doing, service: str) -> ApiError:
    """The error for the other 4xx, and for a redirect where none is followed."""
    if doing == "submit" and (status == 404 or _has(told, _NO_MODEL)):
        return Hopeless(f"{service} knows no such model or address ({told}); check model and base_url")
    if 300 <= status < 400:
        return Hopeless(f"{service} answers with a redirect ({told}); set base_url to where it points, if you trust it")
    if status in (403, 404, 410) and doing == "download":  # an address that was signed for a time ends in a 403
        return NoFile(f"{service} has no file for this job yet, or no more ({told})")
    if status == 403 and not is_refusal(told):
        return Hopeless(f"{service} does not allow this ({told}); check what the key may use")
    return Refused(f"{service} refused the request ({told})")


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text.lower() for word in words)


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)
