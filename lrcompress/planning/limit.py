"""What a budget allows in a given model."""

from __future__ import annotations

from dataclasses import dataclass

from lrcompress.planning.budget import Budget


@dataclass(frozen=True)
class Limit:
    """A budget with the costs that it counts, in its kind and scope."""

    budget: Budget
    dense: int  # of the dense model
    fixed: int  # of what no plan changes
    most: int  # that the budget allows

    @property
    def room(self) -> int:
        """The largest cost of what may change."""
        return self.most - self.fixed


@dataclass(frozen=True)
class Spent:
    """A budget, what a plan costs by it, and the largest cost that it allows."""

    budget: Budget
    cost: int
    limit: int
