"""Held-out examples: they enter no moment, so that they measure a plan without bias."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from lrcompress.network.batches import (
    Batch,
    Batches,
    batch_size,
    evenly_spread,
    examples_of,
    is_divisible,
)

JUDGING_SHARE, MOST_JUDGING, FEWEST_JUDGING = 0.1, 64, 8  # of the examples; examples
CONFIRMING_SHARE, MOST_CONFIRMING, FEWEST_CONFIRMING = 0.05, 64, 4
FEWEST_EXAMPLES = 6  # with fewer, no example is held out


@dataclass(frozen=True, eq=False)
class SetAside:
    """The user's examples in three parts.

    calibration: examples on which moments are measured. judging: examples on which trials, rounds
    and a refit are measured; these choose the result. confirming: examples that choose nothing, so
    that their divergence is that of new examples of the same kind.
    """

    calibration: tuple[Batch, ...]
    judging: tuple[Batch, ...]
    confirming: tuple[Batch, ...]
    spared: bool = True  # False: too few examples, so that every part holds all of them


def set_aside(batches: Batches) -> SetAside:
    """Split the batches: about 1/10 for judging and 1/20 for confirming, spread over all lengths.

    Many batches are split into whole batches, few batches into examples of each batch. With fewer
    than six examples, every part holds all examples.
    """
    total = sum(map(batch_size, batches))
    if total < FEWEST_EXAMPLES or (not all(map(is_divisible, batches)) and len(batches) < 3):
        return SetAside(tuple(batches), tuple(batches), tuple(batches), spared=False)
    judging = _wanted(total, JUDGING_SHARE, FEWEST_JUDGING, MOST_JUDGING, most_share=1 / 4)
    confirming = _wanted(
        total, CONFIRMING_SHARE, FEWEST_CONFIRMING, MOST_CONFIRMING, most_share=1 / 8
    )
    largest = max(map(batch_size, batches))
    if not all(map(is_divisible, batches)) or min(judging, confirming) >= largest:
        return _by_batches(batches, max(1, round(judging / largest)), max(1, confirming // largest))
    return _by_examples(batches, judging, confirming)


def _wanted(total: int, share: float, fewest: int, most: int, *, most_share: float) -> int:
    return max(1, min(max(round(share * total), fewest), most, int(most_share * total)))


def _by_batches(batches: Batches, judging: int, confirming: int) -> SetAside:
    count = len(batches)
    judges = set(evenly_spread(range(count), min(judging, max(1, count // 3))))
    rest = [place for place in range(count) if place not in judges]
    confirms = set(evenly_spread(rest, min(confirming, max(1, len(rest) // 3))))
    return SetAside(
        tuple(batches[i] for i in rest if i not in confirms),
        tuple(batches[i] for i in sorted(judges)),
        tuple(batches[i] for i in sorted(confirms)),
    )


def _by_examples(batches: Batches, judging: int, confirming: int) -> SetAside:
    """Split off examples at the ends of evenly spread batches."""
    parts: tuple[list[Batch], ...] = ([], [], [])
    shares = _shares([batch_size(b) for b in batches], judging, confirming)
    for batch, (judged, confirmed) in zip(batches, shares, strict=True):
        size = batch_size(batch)
        ends = (0, size - judged - confirmed, size - confirmed, size)
        for part, (start, stop) in zip(parts, pairwise(ends), strict=True):
            if start < stop:
                part.append(examples_of(batch, start, stop))
    return SetAside(tuple(parts[0]), tuple(parts[1]), tuple(parts[2]))


def _shares(sizes: list[int], judging: int, confirming: int) -> list[tuple[int, int]]:
    """Number of (judging, confirming) examples that each batch gives.

    Few batches give examples, because a batch of one example runs no faster.
    """
    largest = max(sizes)
    places = max(1, min(len(sizes), -(-4 * (judging + confirming) // largest)))
    givers = set(evenly_spread(range(len(sizes)), places))
    given = {place: [0, 0] for place in range(len(sizes))}
    least = 1 if len(sizes) == 1 else 0  # examples that a batch keeps
    for kind, wanted in enumerate((judging, confirming)):
        for _ in range(wanted):
            free = [p for p in given if sizes[p] - sum(given[p]) > least]
            first = [p for p in free if p in givers] or free
            if first:
                given[min(first, key=lambda p: given[p][kind] / sizes[p])][kind] += 1
    return [(judges, confirms) for judges, confirms in given.values()]
