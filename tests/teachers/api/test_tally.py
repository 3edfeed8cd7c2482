"""What is left to do is sorted without gaps, and limits hold to the last cent."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstill.teachers.api.asking import Asking
from streamstill.teachers.api.journal import Row, Spent, State
from streamstill.teachers.api.tally import ENDED, ApiCollection, ApiFolder, Tally, cost_of, plan
from streamstill.teachers.api.videos import VideosApi
from streamstill.teachers.api.videos_config import VideosApiConfig
from streamstill.types import ClipRequest
from tests.teachers.api.asking_over_http import question

STATES: tuple[State, ...] = ("asked", "running", "done", "withdrawn", *ENDED)
KEYS = [f"key {number}" for number in range(12)]
REQUESTS = {key: question(key) for key in KEYS}


def priced(price: float | None, **changes: Any) -> VideosApi:
    return VideosApi(VideosApiConfig(base_url="https://v.example.com/v1", model="m", price=price, **changes))


def row(key: str, state: State) -> Row:
    return Row(key=key, teacher="toy", request=REQUESTS[key], state=state)


@given(
    st.sets(st.sampled_from(KEYS)),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(STATES)),
    st.booleans(),
    st.sets(st.sampled_from(ENDED)),
)
def test_every_request_is_in_exactly_one_part_and_none_is_paid_twice_unasked(
    known: set[str], states: dict[str, State], idempotent: bool, retry: set[State]
) -> None:
    rows = {key: row(key, state) for key, state in states.items()}
    todo = plan(REQUESTS, known, rows, idempotent=idempotent, retry=retry)
    parts = [set(todo.known), set(todo.paid), set(todo.new), set(todo.ended)]
    assert set.union(*parts) == set(KEYS)
    assert sum(map(len, parts)) == todo.requests == len(KEYS)
    assert set(todo.known) == known
    for key in todo.new:
        assert states.get(key, "withdrawn") in {"withdrawn", *retry} or (states[key] == "asked" and "unsure" in retry)
    for key in todo.paid:
        assert states[key] in ("running", "done") or (states[key] == "asked" and idempotent)
    tally = todo.tally(Spent(clips=1, money=2.5))
    counted = (tally.known, tally.waiting, tally.refused, tally.failed, tally.quarantined, tally.unsure)
    assert sum(counted) == tally.requests == len(KEYS)
    assert tally.money == 2.5


@given(st.integers(1, 400), st.sampled_from([0.01, 0.1, 0.3, 1 / 3, 7.77]))
def test_a_budget_for_so_many_clips_buys_exactly_so_many(clips: int, price: float) -> None:
    config, spent = ApiCollection(budget=clips * price), Spent()
    while not config.allows(spent, price):
        spent = Spent(clips=spent.clips + 1, money=spent.money + price)
    assert spent.clips == clips
    assert config.allows(spent, price) == "budget"
    assert ApiCollection(clips=clips).allows(spent, price) == "clips"
    assert ApiCollection().allows(spent, price) == ""


def test_a_clip_costs_its_seconds() -> None:
    request = ClipRequest(prompt="p", seed=0, frames=24, height=8, width=8, fps=12.0)
    assert cost_of(priced(0.5), request) == 1.0
    assert cost_of(priced(None), request) == 0.0
    new = plan({"a": request, "b": request}, (), {}, idempotent=True)
    assert (new.cost(priced(0.5)), new.cost(priced(None))) == (2.0, None)


def test_what_is_ordered_is_what_it_costs() -> None:
    request = ClipRequest(prompt="p", seed=0, frames=16, height=8, width=8, fps=16.0)
    particular = priced(0.5, asking=Asking(lengths=(4, 6, 8)))
    assert cost_of(particular, request) == 2.0
    assert plan({"a": request}, (), {}, idempotent=True).cost(particular) == 2.0
    assert cost_of(particular, replace(request, frames=160)) == 0.0  # refused, and nothing is sent


def test_a_move_changes_two_counts() -> None:
    tally = Tally(requests=3, waiting=2, running=1).moved("waiting", "running").moved("running", "done")
    assert (tally.waiting, tally.running, tally.done, tally.requests) == (1, 1, 1, 3)


def test_the_folder_is_in_the_cache_or_elsewhere() -> None:
    inside, elsewhere = ApiFolder.in_cache(Path("cache")), ApiFolder.at(Path("jobs"))
    assert inside.journal == Path("cache/api/jobs.jsonl")
    assert inside.quarantine == Path("cache/quarantine")
    assert elsewhere.journal == Path("jobs/jobs.jsonl")
    assert elsewhere.quarantine == Path("jobs/quarantine")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"rate": 0.0}, "rate must be positive, or left out for no limit, got 0.0"),
        ({"budget": -1.0}, "budget must be positive"),
        ({"budget": float("nan")}, "budget must be positive"),
        ({"clips": 0}, "clips must be positive"),
        ({"poll_seconds": -1.0}, "poll_seconds must be 0 or more, got -1.0"),
        ({"retry": ("done",)}, "unknown end to retry 'done': choose one of refused, failed, quarantined, unsure"),
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ApiCollection(**wrong)
