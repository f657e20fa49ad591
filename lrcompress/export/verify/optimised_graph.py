"""The weights of a graph after all of ONNX Runtime's optimisations."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from lrcompress.export.session import open_session
from lrcompress.export.verify.result import Subject
from lrcompress.graph.expanded import ReadWeight, expand_
from lrcompress.graph.upcast import upcast
from lrcompress.graph.weight_keys import content_key, rounded
from lrcompress.scratch import scratch_folder


@dataclass(frozen=True, eq=False)
class OptimisedGraph:
    """The weights that a CPU session of the subject's file holds; it is opened once."""

    subject: Subject

    @cached_property
    def _weights(self) -> tuple[list[NDArray[Any]], list[tuple[ReadWeight, NDArray[Any]]]]:
        import onnx_ir as ir

        with scratch_folder() as folder:
            source, optimised = self.subject.path, folder / "optimised.onnx"
            if self.subject.precision == "bf16":
                source = folder / "float32.onnx"
                upcast(self.subject.path, source)
            open_session(source, optimized_path=optimised)
            model = ir.load(optimised)
            read = {one.name: one for one in expand_(model)}
            floats, dequantised = [], []
            for name, value in model.graph.initializers.items():
                if value.dtype.is_floating_point() and len(value.shape) > 1:
                    values = value.const_value.numpy()
                    if name in read:
                        dequantised.append((read[name], values))
                    else:
                        floats.append(values)
        return floats, dequantised

    @property
    def floats(self) -> list[NDArray[Any]]:
        """The floating-point weights with two or more axes."""
        return self._weights[0]

    @cached_property
    def float_keys(self) -> frozenset[str]:
        return frozenset(map(content_key, self.floats))

    @cached_property
    def in_codes(self) -> dict[str, list[ReadWeight]]:
        """The weights that nodes read in codes, by the key of their values (rows, columns)."""
        found: dict[str, list[ReadWeight]] = defaultdict(list)
        dtype = self.subject.dtype
        for one, values in self._weights[1]:
            found[_key(values, dtype)].append(one)
        return dict(found)

    @cached_property
    def stored_keys(self) -> dict[str, str]:
        """The key of each weight that the network stores in codes, by name."""
        dtype = self.subject.dtype
        return {
            weight.name: _key(weight.values.reshape(weight.codes.codes.shape).numpy(), dtype)
            for weight in self.subject.stored
            if weight.codes is not None
        }

    def weights(self) -> list[NDArray[Any]]:
        """Return all weights as floats, those that the network stores in codes in its shapes."""
        shapes = {
            self.stored_keys[weight.name]: weight
            for weight in self.subject.stored
            if weight.codes is not None
        }
        found = [*self.floats]
        for _, values in self._weights[1]:
            weight = shapes.get(_key(values, self.subject.dtype))
            found.append(values if weight is None else weight.values.numpy())
        return found


def _key(values: NDArray[Any], dtype: Any) -> str:
    import torch

    return content_key(rounded(torch.as_tensor(values.astype("float32")), dtype))
