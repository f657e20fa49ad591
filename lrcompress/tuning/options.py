"""The options of a tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lrcompress.errors import TuneError
from lrcompress.network.readout import Readout

Place = Literal["factors", "layer"]
Scope = Literal["factors", "vectors", "all"]
Precision = Literal["fp32", "bf16", "fp16"]

DEFAULT_STEPS = 200


@dataclass(frozen=True)
class TuneOptions:
    """Options of a tuning.

    steps, minutes: limits of the length; the shorter one counts, and with neither it is 200 steps.
    scope: what trains. "factors": the factors and biases of the compressed layers. "vectors": also
    the norms and biases of all other layers. "all": everything, dense layers included. No scope
    changes a size.
    """

    objective: str = "distill"  # a name in TUNING_OBJECTIVES
    steps: int | None = None
    minutes: float | None = None
    learning_rate: float | None = None  # None: chosen by the learning-rate search
    accumulation: int = 1  # batches in a step
    scope: Scope = "vectors"
    hidden: float = 1.0  # weight of the hidden features, relative to the output, in distillation
    token_noise: bool | None = None  # None: only for texts with a large vocabulary
    divergence: str = "auto"  # of the output: a name in OBJECTIVES
    pooling: str | None = None  # of token embeddings: "mean" or "cls"
    readout: Readout | None = None  # the profile's; None: found from `divergence` and `pooling`
    mask_token: int | None = None  # id of the mask token, for mlm
    optimiser: str = "adamw"  # a name in OPTIMISERS
    adapter: str | None = None  # a name in ADAPTERS; None trains the factors themselves
    adapter_rank: int = 8
    adapter_place: Place = "factors"  # or "layer": one update per layer, truncated when merged
    adapter_alpha: float | None = None  # an update is scaled by alpha / rank (PEFT); None: rank
    skip_first: int = 0  # number of first blocks that stay unchanged (AdapterDrop)
    random_skip: bool = False  # draw the number of skipped blocks from 0 ... skip_first each step
    regularisers: tuple[str, ...] = ()  # names in REGULARISERS
    precision: Precision = "fp32"  # of the products on a GPU; weights keep their dtype
    evaluate_every: int | None = None  # steps; None: about 20 times in all, at least 10 steps apart
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "adapter_rank", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TuneError(f"{name} is {value}; it must be 1 or more")
        for name in ("minutes", "learning_rate", "adapter_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise TuneError(f"{name} is {value}; it must be above 0")
        if self.skip_first < 0:
            raise TuneError(f"skip_first is {self.skip_first}; it must be 0 or more")
        if self.random_skip and not self.skip_first:
            raise TuneError("random_skip needs a number of first blocks; set skip_first")
        if not 0 <= self.hidden < float("inf"):
            raise TuneError(f"hidden is {self.hidden}; it must be 0 or more")
        for name, choices in (
            ("scope", Scope),
            ("precision", Precision),
            ("adapter_place", Place),
        ):
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise TuneError(f"{name} {getattr(self, name)!r} is unknown; choose {known}")
