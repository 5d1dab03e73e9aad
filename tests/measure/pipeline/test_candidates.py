"""Which DataLoaders are tried, and which arithmetic forbids."""

from __future__ import annotations

import pytest

from batchcal.core.units import GIB, MIB
from batchcal.measure.pipeline.candidates import MOST_CANDIDATES, CandidateLimits, LoaderCandidate, candidates, forbidden

ROOM = CandidateLimits(cores=8.0, shm_bytes=64 * MIB, memory_bytes=GIB, worker_bytes=48 * MIB, open_files=1024, processes=None)


def pairs(cores: float, **options: object) -> list[tuple[int, int | None]]:
    pinned, stream = options.get("pinned_workers"), options.get("stream", False)
    found = candidates(cores, pinned_workers=pinned if isinstance(pinned, int) else None, stream=bool(stream))
    return [(one.num_workers, one.prefetch_factor) for one in found]


def test_two_cores_have_eight_candidates_the_simplest_first() -> None:
    assert pairs(2.0) == [(0, None), (1, 2), (1, 4), (1, 1), (1, 8), (2, 2), (2, 4), (2, 1)]


@pytest.mark.parametrize(("cores", "most"), [(0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2), (3.0, 2), (4.0, 2), (8.0, 4), (64.0, 32)])
def test_candidates_use_workers_for_at_most_half_of_the_cores(cores: float, most: int) -> None:
    found = pairs(cores)
    assert max(workers for workers, _ in found) == most
    assert len(found) <= MOST_CANDIDATES
    assert found[0] == (0, None)


def test_pinned_workers_limit_the_candidates() -> None:
    assert pairs(8.0, pinned_workers=0) == [(0, None)]
    assert {workers for workers, _ in pairs(8.0, pinned_workers=3)} == {3}


def test_a_stream_has_one_worker_at_most() -> None:
    assert {workers for workers, _ in pairs(64.0, stream=True)} == {0, 1}


@pytest.mark.parametrize(
    ("candidate", "room", "batch", "tensors", "told"),
    [
        ((0, None), {"memory_bytes": 0, "shm_bytes": 0}, 100 * MIB, 2, ""),
        ((2, 2), {}, 8 * MIB, 2, ""),
        ((2, 4), {}, 8 * MIB, 2, "prefetched batches need 72.0 MiB of /dev/shm; 51.2 MiB may be used"),
        ((2, 4), {"shm_bytes": None}, 8 * MIB, 2, ""),
        ((2, 2), {"memory_bytes": 100 * MIB}, MIB, 2, "2 workers need 103 MiB; 100 MiB are free"),
        ((4, 8), {}, MIB, 100, "prefetched batches need 3364 open files; the limit is 1024"),
        ((4, 1), {"processes": 2}, MIB, 1, "too many processes: only 2 more can start"),
    ],
)
def test_candidates_that_exceed_limits_are_rejected_before_they_start(
    candidate: tuple[int, int | None], room: dict[str, int | None], batch: int, tensors: int, told: str
) -> None:
    one = LoaderCandidate(num_workers=candidate[0], prefetch_factor=candidate[1])
    assert forbidden(one, ROOM.model_copy(update=room), batch_bytes=batch, tensors=tensors) == told
