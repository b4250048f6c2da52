import threading
from collections.abc import Iterator

import numba
import pytest
import torch

from triptych.lanes import AHEAD, MOST, Lanes


@pytest.fixture(autouse=True)
def _cores() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "count", "threads"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (8, MOST, 2), (11, MOST, 2)])
def test_cores_are_shared_out(cores: int, count: int, threads: int) -> None:
    torch.set_num_threads(cores)
    found = Lanes()
    assert (found.count, found.threads) == (count, threads)


def test_one_lane_where_kernels_may_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    # Numba's own pool, where no OpenMP is found, ends the process as soon as two threads use it at once.
    monkeypatch.setattr(numba, "threading_layer", lambda: "workqueue")
    assert Lanes(2).count == 1


def test_results_come_in_the_order_of_the_pieces() -> None:
    # The first piece ends last: it waits for the second.
    ended = threading.Event()

    def work(piece: int) -> int:
        if piece == 0:
            assert ended.wait(10)
        elif piece == 1:
            ended.set()
        return piece * piece

    assert [*Lanes(2).map(work, range(5))] == [0, 1, 4, 9, 16]


def test_every_lane_has_its_share_of_the_cores_and_the_caller_keeps_them() -> None:
    torch.set_num_threads(4)
    assert [*Lanes(2).map(lambda _: torch.get_num_threads(), range(3))] == [2, 2, 2]
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), later) == (4, [4])


def test_a_single_piece_goes_through_a_lane_and_one_lane_is_the_callers_thread() -> None:
    here = threading.get_ident()
    assert [*Lanes(2).map(lambda _: threading.get_ident(), [0])] != [here]
    assert [*Lanes(1).map(lambda _: threading.get_ident(), [0, 1])] == [here, here]


@pytest.mark.parametrize("count", [1, 2])
def test_gradients_are_recorded_where_the_caller_records_them(count: int) -> None:
    weight = torch.ones(2, requires_grad=True)
    on = [*Lanes(count).map(lambda factor: weight * factor, [1.0, 2.0])]
    with torch.no_grad():
        off = [*Lanes(count).map(lambda factor: weight * factor, [1.0, 2.0])]
    assert ([one.requires_grad for one in on], [one.requires_grad for one in off]) == ([True] * 2, [False] * 2)


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_comes_at_its_place_and_ends_the_work(count: int) -> None:
    begun: list[int] = []

    def work(piece: int) -> int:
        begun.append(piece)
        if piece == 1:
            raise RuntimeError("piece 1")
        return piece

    found = Lanes(count).map(work, range(1000))
    assert next(found) == 0
    with pytest.raises(RuntimeError, match="piece 1"):
        next(found)
    assert len(begun) < 1000


def test_few_pieces_are_begun_ahead_of_the_reader() -> None:
    begun: list[int] = []

    def work(piece: int) -> int:
        begun.append(piece)
        return piece

    found = Lanes(2).map(work, range(100))
    assert next(found) == 0
    assert len(begun) <= AHEAD * 2
    assert [*found] == [*range(1, 100)]
