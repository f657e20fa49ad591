"""How the nodes of a graph use a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lrcompress.structures.stored_codes import StoredWeight

Consumer = Literal["MatMul", "Gather", "other"]


@dataclass(frozen=True, eq=False)
class Use:
    """One input of one node.

    consumer: "MatMul" if the node multiplies by the transposed weight, y = x W^T (+ b), as MatMul
        or Gemm; "Gather" if it reads rows; "other" for everything else.
    """

    node: Any
    index: int
    consumer: Consumer


def uses_of(value: Any, weight: StoredWeight) -> tuple[Use, ...]:
    """Return the uses of an initializer; those of its transpose count as its own."""
    rows_are_rows = weight.codes is not None and weight.shape == tuple(weight.codes.codes.shape)
    found: list[Use] = []
    for node, index in tuple(value.uses()):
        if not rows_are_rows:
            found.append(Use(node, index, "other"))
        elif _transposes(node):
            products = [_product(*use, transposed=True) for use in node.outputs[0].uses()]
            found += [use for use in products if use is not None]
            if None in products or node.outputs[0].is_graph_output():
                found.append(Use(node, index, "other"))
        elif node.op_type == "Gather" and index == 0 and _integer(node, "axis") == 0:
            found.append(Use(node, index, "Gather"))
        else:
            found.append(_product(node, index, transposed=False) or Use(node, index, "other"))
    return tuple(found)


def _transposes(node: Any) -> bool:
    perm = node.attributes.get("perm")
    return node.op_type == "Transpose" and (perm is None or tuple(perm.value) == (1, 0))


def _product(node: Any, index: int, *, transposed: bool) -> Use | None:
    """Return the use if it is the right-hand side of x W^T; transposed: of the value it reads."""
    if index != 1 or node.domain:
        return None
    if node.op_type == "MatMul" and transposed:
        return Use(node, index, "MatMul")
    plain = all(_number(node, name) == 1 for name in ("alpha", "beta"))
    if node.op_type == "Gemm" and plain and not _integer(node, "transA"):
        return Use(node, index, "MatMul") if bool(_integer(node, "transB")) != transposed else None
    return None


def _integer(node: Any, name: str) -> int:
    return int(node.attributes[name].value) if name in node.attributes else 0


def _number(node: Any, name: str) -> float:
    return float(node.attributes[name].value) if name in node.attributes else 1.0
