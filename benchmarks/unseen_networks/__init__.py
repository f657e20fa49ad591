"""Networks that the project was not developed on, each with its calibration data and metric.

    from benchmarks.unseen_networks import NETWORKS
    network = NETWORKS["albert"]()
    network.evaluate(network.module)

`python -m benchmarks.unseen_networks` scores the dense ones. What they need from packages is told
where it is absent; what is made once is kept in .cache/unseen_networks.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.unseen_networks import (
    albert,
    antiberty,
    classifier100,
    convnet,
    crnn,
    minilm,
    smollm2,
    tagger,
    whisper,
)
from benchmarks.unseen_networks.network import Network
from benchmarks.unseen_networks.score import Score

__all__ = ["NETWORKS", "Network", "Score"]

NETWORKS: dict[str, Callable[[], Network]] = {
    "whisper": whisper.load,
    "albert": albert.load,
    "antiberty": antiberty.load,
    "smollm2": smollm2.load,
    "minilm": minilm.load,
    "tagger": tagger.load,
    "classifier100": classifier100.load,
    "convnet": convnet.load,
    "crnn": crnn.load,
}
