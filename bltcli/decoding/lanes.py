"""Batches side by side, a thread for each: small graphs gain more from that than from threads of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from time import perf_counter

from bltcli.decoding.driver import Chunk, CountedModel, Lane, Misfit, Refused, Request, hand_back, serve
from bltcli.decoding.protocol import DecodingMethod
from bltcli.sampling import Sampler
from bltcli.stats import DecodeStats

Step = tuple[list[Chunk], list[Misfit]]


def serve_lanes(
    pairs: Sequence[tuple[CountedModel, DecodingMethod]],
    requests: Iterable[Request],
    *,
    sampler: Sampler,
    stats: DecodeStats,
    refused: Refused | None = None,
) -> Iterator[Chunk]:
    """As `serve`, over several models at once, each with a method of its own.

    Requests are drawn, and chunks handed out, in the caller's thread. Passes and their seconds are sums over the lanes.
    """
    if len(pairs) == 1:
        yield from serve(*pairs[0], requests, sampler=sampler, stats=stats, refused=refused)
        return
    began, queue = perf_counter(), iter(requests)
    lanes = [Lane(model, method, sampler, DecodeStats()) for model, method in pairs]
    under_way: dict[Future[Step], Lane] = {}
    try:
        with ThreadPoolExecutor(len(lanes), "lane") as pool:
            idle = lanes
            while True:
                for lane, joining in _dealt(queue, idle):
                    under_way[pool.submit(lane.step, joining)] = lane
                if not under_way:
                    return
                ended = wait(under_way, return_when=FIRST_COMPLETED).done
                idle = [lane for lane in lanes if lane not in under_way.values()]
                for future in ended:
                    idle.append(lane := under_way.pop(future))
                    chunks, misfits = future.result()
                    stats.add(lane.collect())
                    yield from chunks
                    hand_back(misfits, refused)
    finally:
        for lane in lanes:
            lane.leave()
            stats.add(lane.collect())
        stats.wall_s += perf_counter() - began


def _dealt(queue: Iterator[Request], idle: Sequence[Lane]) -> list[tuple[Lane, list[Request]]]:
    """The lanes that have something to do, each with the requests that join it: the emptiest lane takes the next."""
    joining: list[list[Request]] = [[] for _ in idle]
    free = [lane.free for lane in idle]
    for request in islice(queue, sum(free)):
        most = max(range(len(idle)), key=free.__getitem__)
        joining[most].append(request)
        free[most] -= 1
    return [(lane, requests) for lane, requests in zip(idle, joining, strict=True) if requests or lane.busy]
