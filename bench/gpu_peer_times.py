"""GPU checks: the peers of every timed case, after our own times."""

from collections.abc import Iterator

from bench.gpu_bench import all_timed, peer_times
from bench.gpu_worker import Case, Place


def cases(place: Place) -> Iterator[Case]:
    for one in all_timed(place):
        yield Case(f"{one.op}: {one.name}", lambda one=one: peer_times(one, place))
