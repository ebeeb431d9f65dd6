import threading
from contextlib import closing

import pytest

import vdvae_repr as vr
from vdvae_repr.data.loader import check_workers, default_workers, map_ahead


def test_results_come_in_order_whatever_the_workers_do():
    gates = [threading.Event() for _ in range(4)]

    def wait_for_the_next(item):
        """Item 0 ends after item 1, and so on: only workers side by side can end at all."""
        if item + 1 < len(gates):
            assert gates[item + 1].wait(60)
        gates[item].set()
        return item

    assert list(map_ahead(wait_for_the_next, range(4), workers=4, ahead=4)) == [0, 1, 2, 3]


def test_no_more_items_are_drawn_than_are_worked_on():
    drawn = []

    def items():
        for item in range(100):
            drawn.append(item)
            yield item

    with closing(map_ahead(str, items(), workers=2, ahead=3)) as results:
        assert [next(results), next(results)] == ["0", "1"]
        assert drawn == [0, 1, 2, 3, 4]
    assert len(drawn) == 5


def test_an_error_comes_in_its_turn_and_ends_the_workers():
    before = threading.active_count()

    def fail_at_two(item):
        if item == 2:
            raise vr.DataError("item 2")
        return item

    results = map_ahead(fail_at_two, range(10), workers=3, ahead=5)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(vr.DataError, match="item 2"):
        next(results)
    assert threading.active_count() == before


def test_the_cores_are_divided_among_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert default_workers() == 15
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers() == 1
    assert check_workers(3) == 3
    with pytest.raises(
        vr.ConfigError, match="num_workers: expected a whole number, from 1, found 0"
    ):
        check_workers(0)
