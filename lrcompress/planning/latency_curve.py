"""The measured latency of a structure over the share of the parameters that it keeps."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import log2


@dataclass(frozen=True)
class LatencyCurve:
    """Latencies over dense of one structure, form and format, at one size and number of rows.

    The time is a fixed part, such as rounding the inputs, and one that follows the share: it is
    interpolated linearly.
    """

    form: str
    area: int  # out * in features of the dense layer
    rows: int
    block: int  # of the format; 0 without blocks
    kept: tuple[float, ...]  # shares of the dense parameters, rising
    ratios: tuple[float, ...]

    def doublings_from(self, kept: float) -> float:
        """Return the distance of a share from the measured ones; 0 between two of them."""
        if self.kept[0] <= kept <= self.kept[-1]:
            return 0.0
        return min(abs(log2(one / kept)) for one in (self.kept[0], self.kept[-1]))

    def ratio_at(self, kept: float) -> float:
        """Return the latency over dense at a share.

        Beyond the measured shares the line goes on, but never below the time over the share that
        was measured; a single measurement gives nothing else.
        """
        if len(self.kept) == 1:
            return self.ratios[0] * kept / self.kept[0]
        at = min(max(bisect_left(self.kept, kept), 1), len(self.kept) - 1)
        (k0, k1), (r0, r1) = self.kept[at - 1 : at + 1], self.ratios[at - 1 : at + 1]
        slope = max((r1 - r0) / (k1 - k0), 0.0)
        if kept < k0:
            return max(r0 - slope * (k0 - kept), r0 * kept / k0)
        if kept > k1:
            return r1 + slope * (kept - k1)
        return r0 + (r1 - r0) * (kept - k0) / (k1 - k0)
