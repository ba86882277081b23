# SPDX-License-Identifier: Apache-2.0
"""Host memory on huge pages, and the arena that shares it out."""

import gc
import threading

import pytest
import torch

from pagedserve.memory import HUGE_PAGE, Arena, host_bytes


@pytest.mark.parametrize("num_bytes", [0, 1, 4096, HUGE_PAGE + 1])
def test_host_bytes_are_zero_and_start_a_huge_page(num_bytes):
    memory = host_bytes(num_bytes)
    assert memory.shape == (num_bytes,)
    assert not memory.any()
    assert num_bytes == 0 or memory.data_ptr() % HUGE_PAGE == 0
    memory.fill_(7)
    assert (memory == 7).all()


def test_more_than_there_is_is_refused():
    with pytest.raises((OSError, OverflowError)):
        host_bytes(1 << 62)


def test_pieces_are_aligned_and_apart():
    arena = Arena(run_bytes=1 << 16)
    sizes = [1, 64, 65, 5000, 0, 1 << 14, (1 << 14) + 1, 40000, 9000, 9000, 9000]
    pieces = [arena.take(size) for size in sizes]
    for number, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        assert piece.shape == (size,)
        assert size == 0 or piece.data_ptr() % 64 == 0
        assert not piece.any()
        piece.fill_(number)
    assert all((piece == number).all() for number, piece in enumerate(pieces))


def test_neighbours_share_a_run_that_lives_as_long_as_one_of_them():
    arena = Arena(run_bytes=1 << 16)
    first, second = arena.take(1000), arena.take(1000)
    assert second.data_ptr() - first.data_ptr() == 1024
    second.fill_(3)
    del first, arena
    gc.collect()
    assert (second == 3).all()


def test_threads_get_pieces_of_their_own():
    arena = Arena(run_bytes=1 << 14)
    pieces = [[] for _ in range(4)]

    def work(place: int) -> None:
        for _ in range(200):
            piece = arena.take(100)
            piece.fill_(place + 1)
            pieces[place].append(piece)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((torch.stack(own) == place + 1).all() for place, own in enumerate(pieces))
