"""What a tuning is asked for."""

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
    """`steps` and `minutes` limit the length: both given, the shorter counts; none, 200 steps.

    scope: what trains: the "factors" and biases of the compressed layers; with "vectors" the
    norms and biases of all others too; or "all", layers that stayed dense among them. None of
    these changes the size of anything.
    """

    objective: str = "distill"  # a name in TUNING_OBJECTIVES
    steps: int | None = None
    minutes: float | None = None
    learning_rate: float | None = None  # None: chosen by short trials on held-out data
    accumulation: int = 1  # batches in a step
    scope: Scope = "vectors"
    hidden: float = 1.0  # weight of the hidden features beside the output in distillation
    token_noise: bool | None = None  # None: for texts of a large vocabulary
    divergence: str = "auto"  # of the output, a name in OBJECTIVES
    pooling: str | None = None  # of token embeddings: "mean" or "cls"
    readout: Readout | None = None  # the profile's; None: found by `divergence` and `pooling`
    mask_token: int | None = None  # id of the token that hides others, for mlm
    optimiser: str = "adamw"  # a name in OPTIMISERS
    adapter: str | None = None  # a name in ADAPTERS; None trains the factors themselves
    adapter_rank: int = 8
    adapter_place: Place = "factors"  # or beside the "layer", truncated to its rank in the end
    adapter_alpha: float | None = None  # PEFT's alpha / rank scales an update; None: the rank
    skip_first: int = 0  # blocks of the network that keep what they are (AdapterDrop)
    random_skip: bool = False  # at each step the first 0 ... skip_first of them, drawn anew
    regularisers: tuple[str, ...] = ()  # names in REGULARISERS
    precision: Precision = "fp32"  # of the products on a GPU; weights stay as they are
    evaluate_every: int | None = None  # steps; None: twenty times in all, ten steps at least
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
            raise TuneError("random_skip draws from the first blocks; say how many with skip_first")
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
