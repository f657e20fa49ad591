"""Scores of the dense networks.

python -m benchmarks.unseen_networks [NAME ...]
"""

from __future__ import annotations

import argparse
import logging
import time

from benchmarks.unseen_networks import NETWORKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", nargs="*", help=f"among {', '.join(NETWORKS)}")
    names = parser.parse_args().name or list(NETWORKS)
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f"{unknown[0]}: no such network; choose among {', '.join(NETWORKS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in names:
        started = time.perf_counter()
        network = NETWORKS[name]()
        loaded = time.perf_counter()
        score = network.score(network.module)
        size = sum(parameter.numel() for parameter in network.module.parameters())
        nats = "" if score.nats is None else f", {score.nats:.4f} nats"
        entropy = "" if score.entropy is None else f", entropy {score.entropy:.4f}"
        print(
            f"{name}: {size:,} parameters, {network.metric_name} {score.metric:.4f}{nats}{entropy}"
            f" ({loaded - started:.1f} s to load, {time.perf_counter() - loaded:.1f} s to score)",
            flush=True,
        )


if __name__ == "__main__":
    main()
