"""What ours must reach, judged from the rows that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.bits.results import Results
from benchmarks.bits.row import Row, Timing

LAYER_SHARES = ((0.1406, 0.995), (0.125, 0.991), (0.10, 0.967), (0.078, 0.925), (0.06, 0.88))
WHOLE_FILE = (19_500_000, 0.993)  # bytes, cosine
LATENCIES = ((0.45, 0.993), (0.36, 0.90))  # of dense fp32, cosine
PROMISE = 1.10  # times the latency that was asked for
PERPLEXITIES = (1.08, 1.12)  # times the dense graph's, on each evaluation set
SMOLLM2_SHARE, SMOLLM2_KL = 0.14, 0.038
VERSES = "other verses"


@dataclass(frozen=True)
class Verdict:
    """`reached` is None where no row speaks of the claim; `found` is the figure."""

    claim: str
    reached: bool | None
    found: str


def verdicts(results: Results) -> list[Verdict]:
    """Judge every claim."""
    return [
        *minilm_layer_shares(results),
        minilm_whole_file(results),
        *minilm_latencies(results),
        latency_promises(results),
        smollm2_first_blocks(results),
        smollm2_whole(results),
        *never_behind(results),
    ]


def minilm_layer_shares(results: Results) -> list[Verdict]:
    """The cosine at shares of the fp32 bytes of the 36 encoder Linears."""
    dense = results.networks.get("minilm")
    found = []
    for share, least in LAYER_SHARES:
        limit = 0.0 if dense is None else share * (dense.layer_bytes or 0)
        small = [r for r in _ours(results, "minilm") if (r.layer_bytes or limit + 1) <= limit]
        claim = f"MiniLM, {share:.2%} of the encoder Linears' fp32 bytes, cosine >= {least}"
        found.append(_at_least(claim, small, _cosine, least))
    return found


def minilm_whole_file(results: Results) -> Verdict:
    most, least = WHOLE_FILE
    small = [row for row in _ours(results, "minilm") if (row.bytes or most + 1) <= most]
    claim = f"MiniLM, file of at most {most / 1e6:g} MB, cosine >= {least}"
    return _at_least(claim, small, _cosine, least)


def minilm_latencies(results: Results) -> list[Verdict]:
    """On one thread and two, one text and eight: the best cosine of files that are fast in all."""
    found = []
    for most, least in LATENCIES:
        fast = [
            row
            for row in _ours(results, "minilm")
            if row.latency and all(timing.ratio <= most for timing in row.latency)
        ]
        claim = f"MiniLM, latency <= {most} of fp32 in every setting, cosine >= {least}"
        found.append(_at_least(claim, fast, _cosine, least))
    return found


def latency_promises(results: Results) -> Verdict:
    """No plan under a latency budget is slower than its promise by more than a tenth."""
    claim = f"latency within {PROMISE:g} of the budget, every network, one example, one thread"
    promised = [
        (row, timing.ratio / (float(row.budget.removeprefix("latency=").rstrip("%")) / 100))
        for row in results.rows.values()
        if row.group == "ours" and row.budget.startswith("latency=")
        if (timing := _single(row)) is not None
    ]
    if not promised:
        return Verdict(claim, None, "")
    worst, over = max(promised, key=lambda pair: pair[1])
    return Verdict(claim, over <= PROMISE, f"{over:.2f} times ({worst.cell})")


def smollm2_first_blocks(results: Results) -> Verdict:
    """The first 8 blocks in int4 of block 128, 1,024 calibration tokens."""
    rows = [r for r in _ours(results, "smollm2") if r.method == "ours-first-blocks"]
    claim = f"SmolLM2, first 8 blocks int4 of block 128, KL <= {SMOLLM2_KL}"
    return _at_most(claim, rows, lambda row: row.fidelity["other glosses"]["kl"], SMOLLM2_KL)


def smollm2_whole(results: Results) -> Verdict:
    """Perplexity on both kinds of text, over the dense graph's and over what is allowed."""
    dense = results.networks.get("smollm2")
    claim = (
        f"SmolLM2 at {SMOLLM2_SHARE:.0%} of its bytes, perplexity <= "
        f"{' and '.join(f'{p}' for p in PERPLEXITIES)} of dense"
    )
    if dense is None:
        return Verdict(claim, None, "")
    limit = SMOLLM2_SHARE * dense.bytes
    small = [row for row in _ours(results, "smollm2") if (row.bytes or limit + 1) <= limit]

    def over(row: Row) -> float:
        return max(
            row.fidelity[name]["perplexity"] / (allowed * dense.scores[name]["perplexity"])
            for name, allowed in zip(dense.evaluations, PERPLEXITIES, strict=True)
        )

    return _at_most(f"{claim} (figure: of what is allowed)", small, over, 1.0)


def never_behind(results: Results) -> Iterable[Verdict]:
    """Every network: at every baseline's size ours is as good or better."""
    for network in results.networks:
        compared = [
            one
            for one in results.comparisons(network)
            if one.at_no_more == "bytes" and one.better is not None
        ]
        worse = [one.baseline for one in compared if not one.better]
        yield Verdict(
            f"{network}: at no more bytes, as good as every baseline",
            not worse if compared else None,
            f"{len(compared) - len(worse)} of {len(compared)}{', not ' if worse else ''}"
            + ", ".join(worse),
        )


def _ours(results: Results, network: str) -> list[Row]:
    return [row for row in results.of(network) if row.group == "ours" and row.fidelity]


def _cosine(row: Row) -> float:
    return row.fidelity[VERSES]["cosine"]


def _single(row: Row) -> Timing | None:
    return row.timing(batch=1, threads=1)


def _at_least(claim: str, rows: list[Row], score: Callable[[Row], float], least: float) -> Verdict:
    if not rows:
        return Verdict(claim, None, "")
    best = max(rows, key=score)
    return Verdict(claim, score(best) >= least, f"{score(best):.4f} ({best.cell})")


def _at_most(claim: str, rows: list[Row], score: Callable[[Row], float], most: float) -> Verdict:
    if not rows:
        return Verdict(claim, None, "")
    best = min(rows, key=score)
    return Verdict(claim, score(best) <= most, f"{score(best):.4f} ({best.cell})")
