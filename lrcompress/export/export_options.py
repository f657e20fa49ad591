"""How a network is written as an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lrcompress.errors import ExportError
from lrcompress.export.axes import AxisRequest
from lrcompress.export.axis_metadata import Axes
from lrcompress.export.forms import DEFAULT_FORMS, FormChoice
from lrcompress.export.precision import Precision
from lrcompress.export.session import ProviderName
from lrcompress.graph.quantised import Operators, Products, StorageOptions


@dataclass(frozen=True)
class ExportOptions:
    precision: Precision = "fp32"
    opset: int = 20
    external_data: bool | None = None  # None: only if the weights exceed 2 GB
    keep_io: bool = True  # floating-point inputs and outputs stay float32
    static_sequence: bool = False  # fix the length of ids and masks to the batch's own
    dynamic: Axes = field(default_factory=dict)  # must be free: input -> axis -> name ("": default)
    fixed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # input -> axes
    metadata: Mapping[str, str] = field(default_factory=dict)  # fingerprint, plan summary, ...
    forms: FormChoice | None = DEFAULT_FORMS  # of structures; None: keep the current forms
    provider: ProviderName = "cpu"  # that the graph is for: which formats it may read
    operators: Operators | None = None  # that read stored weights; None: see `storage`
    products: Products = "auto"  # of weights in codes: whether a CPU rounds their inputs to 8 bits

    def __post_init__(self) -> None:
        if self.provider == "tensorrt" and self.operators == "contrib":
            raise ExportError(
                "operators contrib: TensorRT does not know ONNX Runtime's own operators "
                "(MatMulNBits, GatherBlockQuantized); use --operators standard, which is its "
                "default"
            )

    @property
    def axes(self) -> AxisRequest:
        return AxisRequest(self.dynamic, self.fixed, self.static_sequence)

    @property
    def storage(self) -> StorageOptions:
        """How stored weights are read: for TensorRT by ONNX's own operators, if none are asked for.

        They are the only ones that it knows; other providers have ONNX Runtime's own.
        """
        default: Operators = "standard" if self.provider == "tensorrt" else "contrib"
        return StorageOptions(self.operators or default, self.products, self.provider)
