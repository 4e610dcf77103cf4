"""The account: each fragment has one fate; what has none is lost, and named."""

from __future__ import annotations

from typing import Any

import pytest

from phloem.model.run import Account, RunStatus, SourceAccount, StreamAccount


def test_lost_is_what_was_sent_and_has_no_fate() -> None:
    source = SourceAccount(100, built=80, incomplete=6, late=5, duplicate=4, discarded=3, quarantined=2)
    assert (source.accounted, source.lost) == (100, 0)
    assert SourceAccount(101, built=80, late=20).lost == 1
    assert SourceAccount(5, built=6).lost == -1
    assert SourceAccount(None, built=6).lost is None
    assert StreamAccount(10, written=7, discarded=2).lost == 1
    assert StreamAccount(None, written=7).lost is None


@pytest.mark.parametrize(
    ("source", "stream", "balanced"),
    [
        (SourceAccount(5, built=5), StreamAccount(5, written=5), True),
        (SourceAccount(6, built=5), StreamAccount(5, written=5), False),
        (SourceAccount(5, built=6), StreamAccount(5, written=5), False),  # more than sent: something is there twice
        (SourceAccount(None, built=5), StreamAccount(5, written=5), False),
        (SourceAccount(5, built=5), StreamAccount(5, written=4), False),
        (SourceAccount(5, built=5), StreamAccount(None, written=5), False),
    ],
)
def test_balanced_needs_every_lost_to_be_nothing_and_every_sent_to_be_known(
    source: SourceAccount, stream: StreamAccount, balanced: bool
) -> None:
    account = Account({"Trigger01": source}, {"EB": stream})
    assert account.balanced is balanced
    assert bool(account.losses()) is not balanced


def test_an_account_is_put_together_from_what_each_component_answered() -> None:
    results: list[dict[str, Any]] = [
        {"sent": {"Trigger01": {"sent": 10, "blocked_s": 0.5, "missed": 2}}},
        {"sent": {"Trigger02": {"sent": 10}}},
        {
            "fates": {"Trigger01": {"built": 9, "incomplete": 1}, "Trigger02": {"built": 9}},
            "sent": {"EB": {"sent": 10}},
        },
        {"written": {"EB": {"written": 10}, "Slow": {"written": 4, "discarded": 1}}},
    ]
    account = Account.assembled(results, ["EB", "Slow", "Scaler"])
    assert account.sources == {
        "Trigger01": SourceAccount(10, built=9, incomplete=1, blocked_s=0.5, missed=2),
        "Trigger02": SourceAccount(10, built=9),
    }
    assert account.streams == {
        "EB": StreamAccount(10, written=10),
        "Scaler": StreamAccount(),
        "Slow": StreamAccount(None, written=4, discarded=1),
    }
    assert account.losses() == [
        "Trigger02: lost 1 of 10 sent",
        "Scaler: how much was sent is not known",
        "Slow: how much was sent is not known",
    ]


def test_the_report_holds_every_number_and_what_is_lost() -> None:
    report = Account({"T": SourceAccount(3, built=2)}, {"EB": StreamAccount(2, written=2)}).report()
    assert report["sources"]["T"] == {
        "sent": 3,
        "built": 2,
        "incomplete": 0,
        "late": 0,
        "duplicate": 0,
        "discarded": 0,
        "quarantined": 0,
        "blocked_s": 0.0,
        "missed": 0,
        "lost": 1,
    }
    assert report["streams"]["EB"]["lost"] == 0


def test_nothing_sent_is_balanced_and_has_no_losses() -> None:
    assert Account().balanced
    assert Account().losses() == []


def test_the_ways_in_which_a_run_can_stand() -> None:
    assert {status.value for status in RunStatus} == {"open", "complete", "released", "interrupted", "failed"}
