"""Every bad answer has one meaning and one sentence, and none shows a key."""

import json
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstill.teachers.api.failures import Doing, cleaned, failure, is_refusal, message, read_key, retry_after, said
from streamstill.teachers.api.jobs import ApiError, Hopeless, NoFile, Refused, TryAgain

KEY = "sk-secret/with+signs="


def failed(status: int, text: str = "", doing: Doing = "submit", variable: str | None = "SOME_KEY") -> ApiError:
    return failure(status, {"retry-after": "7"}, text, doing=doing, service="api.example.com", variable=variable)


@pytest.mark.parametrize(
    ("status", "text", "kind", "words"),
    [
        (401, "", Hopeless, "set SOME_KEY to a valid key"),
        (402, "", Hopeless, "no quota or credit left"),
        (429, "insufficient_quota", Hopeless, "no quota or credit left"),
        (403, "billing is not active", Hopeless, "no quota or credit left"),
        (429, "Quota exceeded for requests per minute", TryAgain, "could not answer now"),
        (403, "Sorry, you have been blocked", Hopeless, "check what the key may use"),
        (403, "your country", Hopeless, "check what the key may use"),
        (403, "input flagged by moderation", Refused, "refused the request"),
        (404, "", Hopeless, "check model and base_url"),
        (400, "model_not_found", Hopeless, "check model and base_url"),
        (400, "size must be even", Refused, "size must be even"),
        (422, "seconds: too long", Refused, "seconds: too long"),
        (302, "", Hopeless, "set base_url to where it points"),
        (408, "", TryAgain, "could not answer now"),
        (429, "slow down", TryAgain, "slow down"),
        (500, "", TryAgain, "could not answer now"),
        (503, "", TryAgain, "could not answer now"),
    ],
)
def test_a_status_of_a_submission_has_a_meaning(status: int, text: str, kind: type[ApiError], words: str) -> None:
    error = failed(status, text)
    assert type(error) is kind
    assert words in str(error)
    assert str(status) in str(error)
    assert "api.example.com" in str(error)


def test_without_a_key_the_sentence_says_how_to_give_one() -> None:
    assert "name the variable of the key in key_variable" in str(failed(401, variable=None))


@pytest.mark.parametrize(
    ("status", "maybe"), [(429, False), (500, False), (503, False), (502, True), (504, True), (524, True)]
)
def test_behind_a_gateway_a_submission_may_have_been_accepted(status: int, maybe: bool) -> None:
    error = failed(status)
    assert isinstance(error, TryAgain)
    assert error.maybe_accepted is maybe
    assert error.after == 7
    polled = failed(status, doing="poll")
    assert isinstance(polled, TryAgain)
    assert not polled.maybe_accepted


def test_a_missing_file_may_come_and_a_missing_job_does_not() -> None:
    assert {type(failed(status, doing="download")) for status in (403, 404, 410)} == {NoFile}
    assert type(failed(404, doing="poll")) is Refused
    assert type(failed(403, doing="poll")) is Hopeless


def test_retry_after_is_read_in_seconds_and_as_a_date() -> None:
    now = time.time()
    assert retry_after("120") == 120
    assert retry_after(" 0.5 ") == 0.5
    assert retry_after(formatdate(now + 30, usegmt=True), now=now) == pytest.approx(30, abs=1)
    assert retry_after(formatdate(now - 30, usegmt=True), now=now) == 0
    for nothing in (None, "", "soon", "-3", "1e9", "9" * 40):
        assert retry_after(nothing) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": {"message": "no such model", "code": "model_not_found"}}, "no such model (model_not_found)"),
        ({"error": {"message": "broken", "code": 500}}, "broken"),
        ({"error": {"code": "broken"}}, "broken"),
        ({"error": "broken"}, "broken"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["seed"], "msg": "too large"}]}, '[{"loc": ["seed"], "msg": "too large"}]'),
        ({"message": "broken"}, "broken"),
        ({}, ""),
    ],
)
def test_the_message_is_found_in_the_usual_shapes(answer: dict[str, object], words: str) -> None:
    assert message(json.dumps(answer)) == words


def test_what_is_no_json_object_is_its_own_message() -> None:
    assert message("<h1>oops</h1>") == "<h1>oops</h1>"
    assert message("[1]") == "[1]"
    assert said(None) == ""


def test_words_lose_tags_control_characters_and_length() -> None:
    page = "<html><head><style>p {x}</style><script>\nsteal()</script></head><h1>Bad\r\n\x1b[31m gateway</h1></html>"
    assert cleaned(page, None) == "Bad [31m gateway"
    assert len(cleaned("x" * 10_000, None)) == 203


@given(before=st.text(max_size=20), after=st.text(max_size=20))
def test_no_words_hold_the_key(before: str, after: str) -> None:
    for shown in (KEY, "sk-secret%2Fwith%2Bsigns%3D"):
        assert shown not in cleaned(f"{before}{shown}{after}", KEY)


def test_refusals_are_known_by_their_words() -> None:
    assert is_refusal("Blocked by our Safety system")
    assert not is_refusal("out of memory")


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    assert read_key("SOME_KEY") == KEY
    monkeypatch.setenv("SOME_KEY", "  ")
    with pytest.raises(Hopeless, match="set the environment variable SOME_KEY"):
        read_key("SOME_KEY")
    for wrong in ("sk\u00e9cret", "two words", "two\nlines"):
        monkeypatch.setenv("SOME_KEY", wrong)
        with pytest.raises(Hopeless, match="SOME_KEY holds characters that no key has") as caught:
            read_key("SOME_KEY")
        assert wrong not in str(caught.value)
