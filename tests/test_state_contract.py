"""What every state store keeps, whatever keeps it: one contract, tried on a file and on a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import quote

import pytest

from cdc.errors import StateBusy, StateError
from cdc.lsn import Lsn
from cdc.state import (
    CallbackState,
    Checkpoint,
    DeadLetter,
    Gap,
    LetterFilter,
    LetterState,
    LetterTotal,
    StateStore,
    files,
    open_state,
    server,
)
from cdc.state.owner import is_owned
from tests.conftest import Database
from tests.running import wait_until
from tests.stored import NOON, SAVER, SOURCE, at, checkpoint, gap, letter

ALL = LetterFilter()
PARKED = LetterState.PARKED


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a state may be; there is none yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.db"
    database: Database = request.getfixturevalue("database")
    cluster = database.cluster
    folder = quote(str(cluster.socket_dir), safe="")
    return f"postgresql://{cluster.superuser}@/{database.name}?host={folder}&port={cluster.port}&schema=a%20state"


@pytest.fixture
def store(url: str) -> Iterator[StateStore]:
    """A new state."""
    with closing(open_state(url)) as store:
        yield store


def stored(store: StateStore, wanted: LetterFilter = ALL) -> list[tuple[str, int]]:
    """Callback and LSN of the letters that are meant."""
    return [(found.callback, found.position.commit_lsn) for found in store.letters(wanted)]


def without_id(letter: DeadLetter) -> DeadLetter:
    """As it was before it was stored."""
    return replace(letter, id=0)


# --- checkpoint, callbacks, gaps


def test_new_state_is_empty(url: str) -> None:
    """No checkpoint, no callbacks, no gaps: the service goes on from the slot."""
    with closing(open_state(url)) as store:
        assert store.load() is None
        assert store.callbacks() == []
        assert store.gaps() == []


def test_checkpoint_comes_back_as_saved(url: str) -> None:
    """All its fields, over the whole 64 bits of an LSN, in a later run."""
    highest = Checkpoint(SOURCE, Lsn(2**64 - 2), 2**63 - 1, {"a": at(2**64 - 1, 10**6), "": at(2**63)})
    with closing(open_state(url)) as store:
        store.save(highest)

    with closing(open_state(url)) as store:
        assert store.load() == highest


def test_checkpoint_replaces_the_one_before(url: str) -> None:
    """A callback that it does not name any more is forgotten with the old one."""
    with closing(open_state(url)) as store:
        store.save(checkpoint(100, old=at(100), kept=at(100)))
        store.save(checkpoint(200, kept=at(200), new=at(201)))

        assert store.load() == checkpoint(200, kept=at(200), new=at(201))


def test_flushed_lsn_never_goes_back(url: str) -> None:
    """What the server was told is settled cannot become unsettled; the same position again is fine."""
    high = Checkpoint(SOURCE, Lsn(2**63 + 5), 7)
    with closing(open_state(url)) as store:
        store.save(high)
        store.save(replace(high, callbacks={"late": at(2**63 + 5)}))

        with pytest.raises(StateError, match="would go back from 80000000/5 to 0/10"):
            store.save(checkpoint(16), [gap("", 1, 2)])

        assert store.load() == replace(high, callbacks={"late": at(2**63 + 5)})
        assert store.gaps() == []


def test_another_source_begins_where_it_likes(url: str) -> None:
    """LSNs of another cluster, timeline, slot or selection do not compare with these."""
    with closing(open_state(url)) as store:
        store.save(checkpoint(500))
        other = replace(checkpoint(3), source=replace(SOURCE, timeline=2))
        store.save(other)

        assert store.load() == other


def test_open_gap_grows(url: str) -> None:
    """The same callback and first position again replaces what was known of that gap."""
    with closing(open_state(url)) as store:
        store.save(checkpoint(100), [gap("b", 9, 9), gap("", 7, 8, 2)])
        store.save(checkpoint(100), [gap("b", 9, 14, 5), gap("a", 9, 9)])

        assert store.gaps() == [gap("", 7, 8, 2), gap("a", 9, 9), gap("b", 9, 14, 5)]


def test_gap_times_are_kept_as_moments(url: str) -> None:
    """An aware time of any zone comes back as the same moment."""
    east = timezone(timedelta(hours=5, minutes=45))
    recorded = replace(gap("a", 1, 2), first_time=NOON.astimezone(east))
    with closing(open_state(url)) as store:
        store.save(checkpoint(), [recorded])

        assert store.gaps() == [recorded]


def test_failed_save_changes_nothing(url: str) -> None:
    """Checkpoint and gaps are one transaction: one that cannot be stored takes all others with it."""
    with closing(open_state(url)) as store:
        store.save(checkpoint(100), [gap("a", 1, 1)])

        with pytest.raises((OverflowError, StateError)):
            store.save(checkpoint(200), [gap("a", 2, 2), gap("a", 3, 3, events=2**70)])

        assert store.load() == checkpoint(100)
        assert store.gaps() == [gap("a", 1, 1)]
        store.save(checkpoint(200))


def test_callback_is_active_until_removed(url: str) -> None:
    """A removal records position, time and reason, outlives later checkpoints, and ends when it is resumed."""
    with closing(open_state(url)) as store:
        store.save(checkpoint(100, audit=at(110), mail=at(120)))
        store.mark_removed("mail", at(120), "3 consecutive failures")
        store.save(checkpoint(200, audit=at(200), mail=at(200)))

        audit, mail = store.callbacks()
        assert (audit.name, audit.settled, audit.state) == ("audit", at(200), CallbackState.ACTIVE)
        assert (audit.removed_at, audit.removed_time, audit.reason) == (None, None, "")
        assert (mail.name, mail.settled, mail.state) == ("mail", at(200), CallbackState.REMOVED)
        assert (mail.removed_at, mail.reason) == (at(120), "3 consecutive failures")
        assert mail.removed_time is not None
        assert abs(datetime.now(UTC) - mail.removed_time) < timedelta(minutes=1)

        store.mark_resuming("mail")
        store.mark_active("mail")
        store.mark_active("mail")
        assert [record.state for record in store.callbacks()] == [CallbackState.ACTIVE] * 2


def test_first_removal_stands(url: str) -> None:
    """Removing what is removed does not move the position from which events are missing."""
    with closing(open_state(url)) as store:
        store.mark_removed("mail", at(120), "failed")
        store.mark_removed("mail", at(300), "again")

        (mail,) = store.callbacks()
        assert (mail.removed_at, mail.settled, mail.reason) == (at(120), at(120), "failed")


def test_store_may_be_used_in_another_thread(url: str) -> None:
    """The service opens it where it starts and calls it from the one thread it keeps for it."""
    with closing(open_state(url)) as store, ThreadPoolExecutor(1) as pool:
        pool.submit(store.save, checkpoint(100)).result()

        assert pool.submit(store.load).result() == checkpoint(100)


def test_close_twice_is_harmless(url: str) -> None:
    """And a closed store says that it is closed."""
    store = open_state(url, owner=True)
    store.close()
    store.close()

    with pytest.raises(StateError, match="closed"):
        store.load()


def test_others_read_and_write_beside_the_owner(url: str) -> None:
    """`cdc status` reads what is saved, and a command records a removal, while the service runs."""
    with (
        closing(open_state(url, owner=True)) as service,
        closing(open_state(url)) as command,
        closing(open_state(url, read_only=True)) as status,
    ):
        service.save(checkpoint(100, mail=at(100)))
        assert status.load() == checkpoint(100, mail=at(100))

        command.mark_removed("mail", at(100), "by hand")
        service.save(checkpoint(200, mail=at(200)))
        (mail,) = status.callbacks()
        assert (mail.settled, mail.removed_at) == (at(200), at(100))


def test_callback_out_of_the_configuration_keeps_its_record(store: StateStore) -> None:
    """A later checkpoint does not name it; the record stays until it is forgotten, and no checkpoint brings it back."""
    store.save(checkpoint(100, mail=at(100), old=at(90)))
    store.save(checkpoint(200, mail=at(200)))

    assert store.load() == checkpoint(200, mail=at(200))
    assert [(record.name, record.settled) for record in store.callbacks()] == [("mail", at(200)), ("old", at(90))]
    store.save(checkpoint(300, mail=at(300), old=at(300)))
    assert store.load() == checkpoint(300, mail=at(300), old=at(300))


def test_removal_turns_to_resuming_and_back(store: StateStore) -> None:
    """Resuming keeps where and why it was removed; it ends with another removal, or in an active callback."""
    store.save(checkpoint(100, mail=at(100)))
    store.mark_resuming("mail")
    assert store.callbacks()[0].state is CallbackState.ACTIVE

    store.mark_removed("mail", at(120), "failed")
    (removed,) = store.callbacks()
    store.mark_resuming("mail")
    assert store.callbacks() == [replace(removed, state=CallbackState.RESUMING)]

    store.mark_removed("mail", at(300), "again")
    assert store.callbacks() == [removed]
    store.mark_resuming("mail")
    store.mark_active("mail")
    (active,) = store.callbacks()
    assert (active.state, active.removed_at) == (CallbackState.ACTIVE, None)


def test_pause_is_kept_and_gives_way_to_a_removal(store: StateStore) -> None:
    """A pause is no removal, does not undo one, and ends by resuming."""
    store.mark_paused("mail", at(120), "operator")
    (record,) = store.callbacks()
    assert (record.state, record.removed_at, record.reason) == (CallbackState.PAUSED, at(120), "operator")
    store.mark_resuming("mail")
    store.mark_paused("mail", at(130), "operator")
    assert store.callbacks()[0].state is CallbackState.PAUSED
    store.mark_removed("mail", at(140), "failures")
    store.mark_paused("mail", at(150), "operator")
    assert store.callbacks()[0].state is CallbackState.REMOVED
    store.mark_resuming("mail")
    store.mark_active("mail")
    assert store.callbacks() == []


@pytest.mark.parametrize("state", [CallbackState.REMOVED, CallbackState.PAUSED])
def test_what_is_ordered_while_a_callback_resumes_stands(store: StateStore, state: CallbackState) -> None:
    """The service ends the resuming when it has delivered all; it may not know yet what was ordered meanwhile."""
    store.mark_paused("mail", at(120), "operator")
    store.mark_resuming("mail")
    order = store.mark_removed if state is CallbackState.REMOVED else store.mark_paused
    order("mail", at(130), "operator")
    store.mark_active("mail")
    assert store.callbacks()[0].state is state


def test_forget_leaves_nothing_of_a_callback(store: StateStore) -> None:
    """Its record, its letters and its gaps; all others stay."""
    store.save(checkpoint(100, mail=at(100), audit=at(100)), [gap("mail", 1, 2), gap("audit", 1, 2), gap("", 3, 3)])
    store.mark_removed("mail", at(100), "failed")
    store.add_letters([letter("mail", 7), letter("audit", 7)])

    store.forget("mail")

    assert [record.name for record in store.callbacks()] == ["audit"]
    assert stored(store) == [("audit", 7)]
    assert store.gaps() == [gap("audit", 1, 2), gap("", 3, 3)]


def test_the_configuration_that_was_noted_last_is_kept(store: StateStore) -> None:
    """None before the first."""
    assert store.configuration() is None
    for text in ("one", '{"two": "\u00e4"}'):
        store.note_configuration(text)
        assert store.configuration() == text


def test_gaps_of_two_reasons_stand_side_by_side(store: StateStore) -> None:
    """What begins at the same event but for another reason is another gap."""
    dropped = replace(gap("mail", 5, 6, 2), reason="dropped")
    store.save(checkpoint(), [gap("mail", 5, 9, 3), dropped])

    assert store.gaps() == [dropped, gap("mail", 5, 9, 3)]


# --- dead letters


def test_letter_comes_back_as_it_was(store: StateStore) -> None:
    """Every field, over the whole range of positions, and whatever bytes and letters are in it."""
    failed = letter(
        "mail",
        2**64 - 1,
        event=bytes(range(256)),
        error_text="schön 'quoted' % ? \\ \U0001f4a5",
        attempts=2**31 - 1,
        retry=True,
    )
    parked = letter("mail", 2**63, PARKED, table='odd "name".Ünï', event=b"", event_type="truncate")
    store.add_letters([failed, parked])

    found = store.letters(ALL)

    assert [without_id(one) for one in found] == [parked, failed]
    assert len({one.id for one in found} - {0}) == 2


def test_error_text_that_no_database_takes_is_written_out(store: StateStore) -> None:
    """NUL, and the half characters that Python makes of foreign file names: a dead letter is never refused for them."""
    store.add_letters([letter("mail", 1, error_text="a\0b\udc80c")])

    assert store.letters(ALL)[0].error_text == "a\\x00b\\udc80c"


def test_letter_of_the_same_event_replaces_the_one_before(store: StateStore) -> None:
    """It keeps its id, which somebody may have written down, and the time it first failed."""
    store.add_letters([letter("mail", 1, PARKED), letter("audit", 1)])
    before = {one.callback: one for one in store.letters(ALL)}
    again = letter("mail", 1, event=b"newer", first_time=NOON, last_time=NOON + timedelta(hours=1), retry=True)

    store.add_letters([again])

    assert store.letters(ALL) == [
        before["audit"],
        replace(again, id=before["mail"].id, first_time=before["mail"].first_time),
    ]


def test_parked_letter_never_replaces_a_failed_one(store: StateStore) -> None:
    """The error of an event that comes again after a removal is not forgotten."""
    store.add_letters([letter("mail", 1)])
    before = store.letters(ALL)

    store.add_letters([letter("mail", 1, PARKED, event=b"newer"), letter("mail", 2, PARKED)])

    assert store.letters(ALL)[:1] == before
    assert stored(store) == [("mail", 1), ("mail", 2)]


def test_letters_are_kept_all_or_none(store: StateStore) -> None:
    """One that cannot be stored takes the others with it: their events are not settled."""
    with pytest.raises((OverflowError, StateError)):
        store.add_letters([letter("mail", 1), letter("mail", 2, attempts=2**70)])

    assert store.letters(ALL) == []
    store.add_letters([letter("mail", 1)])


def test_letters_are_in_the_order_of_their_positions(store: StateStore) -> None:
    """By callback, then as they were committed: 9 before 10, and beyond the 63 bits that a file sorts by itself."""
    positions = [at(2**63 + 1), at(10, 10), at(10, 9), at(9, 300), at(2**63)]
    store.add_letters([replace(letter("b", 1), position=position) for position in positions])
    store.add_letters([letter("B", 1), letter("a", 1), letter("é", 1), letter("z", 1)])

    found = store.letters(ALL)

    assert [one.callback for one in found if one.callback != "b"] == ["B", "a", "z", "é"]
    assert [one.position for one in found if one.callback == "b"] == sorted(positions)


def test_pages_hold_every_letter_once(store: StateStore) -> None:
    """Each page goes on behind the last letter of the one before, also across callbacks."""
    store.add_letters([letter(callback, lsn) for callback in ("a", "b", "c") for lsn in range(1, 12)])
    pages = [store.letters(ALL, limit=5)]
    while pages[-1]:
        pages.append(store.letters(ALL, after=(pages[-1][-1].callback, pages[-1][-1].position), limit=5))

    assert [len(page) for page in pages] == [5] * 6 + [3, 0]
    assert [one for page in pages for one in page] == store.letters(ALL)


def test_page_ends_before_it_holds_too_much(store: StateStore) -> None:
    """But it holds one letter, however large: else nobody would get past it."""
    store.add_letters([letter("a", lsn, event=bytes(1000), error_text="") for lsn in range(1, 6)])
    store.add_letters([letter("a", 6, event=bytes(10_000))])

    def page(after: int, max_bytes: int) -> list[tuple[str, int]]:
        found = store.letters(ALL, after=("a", at(after)), limit=4, max_bytes=max_bytes)
        return [(one.callback, one.position.commit_lsn) for one in found]

    assert page(0, 2999) == [("a", 1), ("a", 2)]
    assert page(0, 3000) == [("a", 1), ("a", 2), ("a", 3)]
    assert page(0, 10**6) == [("a", 1), ("a", 2), ("a", 3), ("a", 4)]
    assert page(0, 1) == [("a", 1)]
    assert page(4, 3000) == [("a", 5)]
    assert page(5, 3000) == [("a", 6)]
    assert page(6, 3000) == []


def test_filters_choose_letters(store: StateStore) -> None:
    """Each condition by itself, and all of them together."""
    store.add_letters(
        [
            letter("a", 1),
            letter("a", 2, PARKED, table="public.orders"),
            letter("b", 3, last_time=NOON + timedelta(seconds=1), retry=True),
            letter("b", 4, PARKED, last_time=NOON - timedelta(microseconds=1)),
        ]
    )
    ids = [one.id for one in store.letters(ALL)]
    east = NOON.astimezone(timezone(timedelta(hours=5, minutes=45)))

    def lsns(**conditions: object) -> list[int]:
        return [lsn for _, lsn in stored(store, LetterFilter(**conditions))]  # type: ignore[arg-type]

    assert lsns(ids=[ids[2], ids[0], -5, 2**70, 10**9]) == [1, 3]
    assert lsns(ids=[]) == []
    assert lsns(callback="a") == [1, 2]
    assert lsns(callback="A") == []
    assert lsns(table="public.orders") == [2]
    assert lsns(state=LetterState.FAILED) == [1, 3]
    assert lsns(state=PARKED) == [2, 4]
    assert lsns(before=east) == [4]
    assert lsns(before=NOON + timedelta(seconds=1)) == [1, 2, 4]
    assert lsns(retry=True) == [3]
    assert lsns(retry=False) == [1, 2, 4]
    assert lsns(ids=ids, callback="b", table="public.users", state=PARKED, before=NOON, retry=False) == [4]
    assert lsns(ids=ids, callback="b", table="public.users", state=PARKED, before=NOON, retry=True) == []


def test_totals_count_letters_by_callback_and_state(store: StateStore) -> None:
    """How many, how many bytes, since when, and how many wait for another attempt; replaced letters count once."""
    assert store.letter_totals() == []
    early = NOON - timedelta(days=1)
    store.add_letters([letter("a", 1, event=b"12345"), letter("a", 2, event=b"123", error_text="", first_time=early)])
    store.add_letters([letter("a", 3, PARKED, event=b"1234"), letter("b", 3, PARKED, event=b"")])
    store.add_letters([letter("a", 1, event=b"123456", retry=True)])

    hour_before = NOON - timedelta(hours=1)
    assert store.letter_totals() == [
        LetterTotal("a", LetterState.FAILED, 2, 6 + len("no") + 3, early, 1),
        LetterTotal("a", PARKED, 1, 4, hour_before, 0),
        LetterTotal("b", PARKED, 1, 0, hour_before, 0),
    ]


def test_removed_letters_are_gone_and_leave_no_gap(store: StateStore) -> None:
    """They were delivered after all. Ids that are unknown, or gone already, harm nothing and never come again."""
    store.add_letters([letter("a", lsn) for lsn in range(1, 4)])
    first, second, third = store.letters(ALL)

    store.remove_letters([third.id, first.id, 10**9, -1, 2**70])
    store.remove_letters([first.id])
    store.remove_letters([])

    assert store.letters(ALL) == [second]
    assert store.gaps() == []
    store.add_letters([letter("a", 9)])
    assert store.letters(ALL)[-1].id not in {first.id, second.id, third.id}


def test_discarded_letters_are_on_record_as_gaps(store: StateStore) -> None:
    """One gap for each callback: from where to where, how many, and when."""
    late = NOON + timedelta(hours=2)
    store.add_letters([letter("a", 9), letter("a", 10, PARKED, last_time=late), letter("a", 11, table="public.x")])
    store.add_letters([letter("b", 2)])

    assert store.discard_letters(LetterFilter(table="public.users")) == 3

    assert stored(store) == [("a", 11)]
    hour_before = NOON - timedelta(hours=1)
    assert store.gaps() == [
        Gap("b", at(2), at(2), 1, "discarded", hour_before, NOON),
        Gap("a", at(9), at(10), 2, "discarded", hour_before, late),
    ]
    assert store.discard_letters(LetterFilter(table="public.users")) == 0
    assert len(store.gaps()) == 2


def test_discarding_again_adds_to_the_gap(store: StateStore) -> None:
    """Events that came again, failed again and were discarded again; a gap of another reason is not touched."""
    store.save(checkpoint(), [gap("a", 9, 30, 7)])
    store.add_letters([letter("a", 9), letter("a", 12, last_time=NOON + timedelta(hours=3))])
    store.discard_letters(ALL)
    store.add_letters([letter("a", 9), letter("a", 10)])
    store.discard_letters(ALL)

    discarded = Gap("a", at(9), at(12), 4, "discarded", NOON - timedelta(hours=1), NOON + timedelta(hours=3))
    assert store.gaps() == [discarded, gap("a", 9, 30, 7)]


def test_retry_is_asked_for_failed_letters_only(store: StateStore) -> None:
    """What is parked is delivered by resuming its callback. Asking twice counts them twice, and changes nothing."""
    store.add_letters([letter("a", 1), letter("a", 2, PARKED), letter("b", 3)])

    assert store.request_retry(LetterFilter(callback="a")) == 1
    assert store.request_retry(LetterFilter(callback="a")) == 1

    assert stored(store, LetterFilter(retry=True)) == [("a", 1)]
    assert store.request_retry(ALL) == 2
    assert stored(store, LetterFilter(retry=True)) == [("a", 1), ("b", 3)]


# --- several at once


def test_version_changes_when_somebody_else_has_written(url: str) -> None:
    """And stays when nobody has, however often it is asked, whatever this one writes itself."""
    with closing(open_state(url, owner=True)) as service, closing(open_state(url)) as command:
        before = service.version()
        service.save(checkpoint(100, mail=at(100)))
        service.add_letters([letter("mail", 1)])
        service.ping()
        assert service.version() == service.version() == before

        for write in (
            lambda: command.mark_removed("mail", at(100), "by hand"),
            lambda: command.request_retry(ALL),
            lambda: command.discard_letters(ALL),
        ):
            write()
            after = service.version()
            assert after != before
            before = after
        command.letters(ALL)
        assert service.version() == before


def test_second_owner_is_told_who_is_first(url: str) -> None:
    """Two services on one state would each acknowledge what the other has not settled."""
    with closing(open_state(url, owner=True)), pytest.raises(StateBusy, match="in use by another cdc run") as caught:
        open_state(url, owner=True)
    assert f"process {os.getpid()}" in caught.value.holder
    assert caught.value.holder in str(caught.value)

    with closing(open_state(url, owner=True)) as next_one:
        assert not next_one.taken_over  # the first has closed it


def test_commands_see_whether_a_service_owns_the_state(url: str) -> None:
    """Then it acts on what they write; a reader and another command do not count."""
    with closing(open_state(url)):
        assert not is_owned(url)
        with closing(open_state(url, owner=True)):
            assert is_owned(url)
        assert not is_owned(url)


def test_read_only_store_refuses_every_write(url: str) -> None:
    """Whoever only looks cannot change what he looks at."""
    with closing(open_state(url)) as store:
        store.save(checkpoint(100, mail=at(100)))
        store.add_letters([letter("mail", 1)])

    with closing(open_state(url, read_only=True)) as store:
        for write in (
            lambda: store.save(checkpoint(200)),
            lambda: store.mark_removed("mail", at(1), ""),
            lambda: store.mark_resuming("mail"),
            lambda: store.mark_paused("mail", at(1), ""),
            lambda: store.mark_active("mail"),
            lambda: store.forget("mail"),
            lambda: store.add_letters([letter("mail", 2)]),
            lambda: store.remove_letters([1]),
            lambda: store.discard_letters(ALL),
            lambda: store.request_retry(ALL),
        ):
            with pytest.raises(StateError, match="cannot be written"):
                write()
        assert store.load() == checkpoint(100, mail=at(100))
        assert stored(store) == [("mail", 1)]


def test_read_only_open_makes_no_state(url: str) -> None:
    """Looking for one does not leave one behind."""
    for _ in range(2):
        with pytest.raises(StateError, match=r"does not exist \| cdc run makes it"):
            open_state(url, read_only=True)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many writers on a slow disk: each may have to wait for long, which is told as an error otherwise."""
    monkeypatch.setattr(files, "_BUSY_SECONDS", 60.0)
    monkeypatch.setitem(server._SESSION, "lock_timeout", "60s")


def test_first_opens_at_the_same_time_make_one_state(url: str, patient: None) -> None:
    """Whoever comes second finds what the first has made."""
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: open_state(url), range(8)))
    stores[0].save(checkpoint(100))

    assert [store.load() for store in stores] == [checkpoint(100)] * 8
    for store in stores:
        store.close()


def test_writers_at_the_same_time_lose_nothing(url: str, patient: None) -> None:
    """Service and commands write what they write, one after the other."""

    def add(writer: int) -> None:
        with closing(open_state(url)) as store:
            for lsn in range(1, 51):
                store.add_letters([letter(f"c{writer}", lsn), letter("shared", lsn)])
                if lsn % 10 == 0:
                    store.discard_letters(LetterFilter(callback=f"c{writer}"))

    open_state(url).close()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))

    with closing(open_state(url)) as store:
        assert stored(store) == [("shared", lsn) for lsn in range(1, 51)]
        assert [(gap.callback, gap.events) for gap in store.gaps() if gap.first == at(1)] == [
            (f"c{writer}", 10) for writer in range(4)
        ]
        assert sum(gap.events for gap in store.gaps()) == 4 * 50


def test_kill_while_saving_loses_no_save_reported_as_done(url: str) -> None:
    """SIGKILL in a loop of saves, again and again: never older than reported, never torn, never locked."""
    for round_ in range(5):
        with subprocess.Popen([sys.executable, "-c", SAVER, url], stdout=subprocess.PIPE, text=True) as saver:
            assert saver.stdout is not None
            for _ in range(5 + 40 * round_):
                reported = int(saver.stdout.readline())
            saver.send_signal(signal.SIGKILL)
            reported = int((saver.stdout.read().splitlines() or [str(reported)])[-1])

        with closing(open_when_free(url)) as store:
            found = store.load()
            (gap_found,) = store.gaps()
        assert found is not None
        assert found.flushed_lsn >= reported
        assert found.flushed_lsn == found.last_event_id == gap_found.events
        assert found.callbacks == {"a": at(found.flushed_lsn)} == {"a": gap_found.last}


def open_when_free(url: str) -> StateStore:
    """Become the owner as soon as the one before has gone: a server learns of it from the end of its connection."""
    opened: list[StateStore] = []

    def is_free() -> bool:
        try:
            opened.append(open_state(url, owner=True))
        except StateBusy:
            return False
        return True

    wait_until(is_free)
    return opened[0]
