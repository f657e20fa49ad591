"""The options of a profile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProfileOptions:
    objective: str = "auto"  # or a name in OBJECTIVES
    outputs: tuple[str, ...] = ()  # names of outputs to measure; none: all that suit
    pooling: str | None = None  # "mean" or "cls" of token embeddings
    metric: str | None = None  # the default for planning; None: two-sided with data, else plain
    probes: int = 1  # backward passes per batch
    shrinkage: float | None = None  # None: by the number of rows behind a moment
    bias_compensation: bool = True
    max_memory: int | None = 2**30  # bytes of running moments per pass; sets the number of passes
    trials: bool = True  # truncate each layer alone at a few ranks, to correct its loss curve
    token_noise: bool | None = None  # None: where it was measured to help (see token_noise.py)
    structures: tuple[str, ...] = ("low_rank",)  # measure their loss curves; low rank needs no fit
    formats: tuple[str, ...] = ()  # number formats whose loss curves are measured, as texts
    seed: int = 0

    @property
    def metric_with_data(self) -> str:
        """The metric that is the default for planning after a profile with data."""
        return self.metric or "two-sided"
