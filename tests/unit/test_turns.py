"""Tests that need the machine for themselves have it, and come to their turn."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

from support.turns import Turns


def waits(thread: Thread) -> bool:
    thread.join(0.1)
    return thread.is_alive()


def test_who_is_alone_waits_for_all_and_others_wait_behind(tmp_path: Path) -> None:
    door, room = tmp_path / "door", tmp_path / "room"
    door.touch(), room.touch()
    first, second, alone, late = (Turns(door, room) for _ in range(4))
    first.begin(alone=False)
    second.begin(alone=False)  # beside it
    solitary = Thread(target=alone.begin, args=(True,))
    solitary.start()
    assert waits(solitary)
    newcomer = Thread(target=late.begin, args=(False,))
    newcomer.start()
    first.end(goes_on=True)
    assert waits(solitary) and waits(newcomer)
    second.end(goes_on=False)
    solitary.join()
    assert alone.alone and waits(newcomer)
    alone.end(goes_on=True)  # its file has another
    alone.begin(alone=True)
    assert waits(newcomer)
    alone.end(goes_on=False)
    newcomer.join()
    assert not alone.alone and not late.alone
