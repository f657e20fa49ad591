"""The two-sided metric blended with the inputs' second moment and the identity.

Both Kronecker factors are estimated at the dense network from few examples. A compressed network
differs from it, and other directions are sensitive there too. This metric takes 30 % of the input
factor from the plain second moment of the inputs and 30 % of the output factor from the identity.
It lies between the two-sided and the input-weighted metric, and is better on networks that respond
nonlinearly to the changes that compression makes (benchmarks/unseen.py).
"""

from __future__ import annotations

from lrcompress.metrics.two_sided import TwoSided


class Blended(TwoSided):
    name = "blended"
    input_share = 0.3
    output_share = 0.3
