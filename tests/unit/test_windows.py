"""A window of hits: what it admits in one call is what it counts and adds in two."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.stores import SLOTS
from fal_proxy.stores.windows import Window


@given(st.lists(st.integers(0, 2 * SLOTS), max_size=80), st.integers(0, 6))
def test_admitting_is_counting_and_then_adding(steps: list[int], limit: int) -> None:
    one, two, slot = Window(), Window(), 0
    for step in steps:
        slot += step if step % 3 else 0
        admitted = two.count(slot) < limit
        if admitted:
            two.hit(slot)
        assert one.admit(slot, limit) is admitted
        assert (one.dump(), one.count(slot)) == (two.dump(), two.count(slot))


def test_a_place_is_held_for_the_window_and_one_slot_more() -> None:
    window = Window()
    assert [window.admit(slot, 1) for slot in (0, 0, SLOTS, SLOTS + 1)] == [True, False, False, True]
