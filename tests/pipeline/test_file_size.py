"""Plans under a budget of bytes are made again until their own file fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic import random_profile

from lrcompress.errors import BudgetError
from lrcompress.pipeline.file_size import FileSize
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import Profile

BUDGET = (Budget.parse("bytes=60%"),)
KIB = 2**10


@pytest.fixture(scope="module")
def made() -> Profile:
    return random_profile(5, [(64, 64), (64, 192), (192, 64)] * 3)


class Growing(FileSize):
    """The file of every plan is a little larger than the last one counted, up to a size."""

    most: int

    def overhead(self, made: Plan) -> int:
        return min(made.options.overhead_bytes + KIB, self.most)


def growing(profile: Profile, most: int) -> Growing:
    size = Growing(None, profile)  # type: ignore[arg-type]
    object.__setattr__(size, "most", most)
    return size


@pytest.mark.parametrize("most", [10 * KIB, 60 * KIB, 100 * KIB])
def test_overheads_that_grow_with_every_plan_are_met(made: Profile, most: int) -> None:
    start = plan(made, BUDGET, PlanOptions(overhead_bytes=8 * KIB))
    found = growing(made, most).fitted(start)
    assert most <= found.options.overhead_bytes <= 2 * most
    assert found.within_budget


def test_a_plan_that_fits_is_kept(made: Profile) -> None:
    start = plan(made, BUDGET, PlanOptions(overhead_bytes=8 * KIB))
    assert growing(made, 8 * KIB).fitted(start) is start


def test_a_budget_that_the_rest_of_the_file_exceeds_is_refused(made: Profile) -> None:
    start = plan(made, BUDGET, PlanOptions(overhead_bytes=8 * KIB))
    with pytest.raises(BudgetError, match=r"bytes=60%: cannot be met; the smallest reachable is"):
        growing(made, 2**24).fitted(replace(start))
