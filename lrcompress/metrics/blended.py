"""The two-sided metric with larger shares of what calibration knows for certain.

Both Kronecker factors are estimated at the dense network from few examples. A compressed network
is some way off, where other directions are sensitive too. This metric takes three tenths of the
input factor from the plain second moment of the inputs and three tenths of the output factor from
the identity. Between the two-sided and the input-weighted metric it is the better one on networks
that are far from linear in the changes that compression makes (benchmarks/unseen.py).
"""

from __future__ import annotations

from lrcompress.metrics.two_sided import TwoSided


class Blended(TwoSided):
    name = "blended"
    input_share = 0.3
    output_share = 0.3
