"""AdaLoRA: updates P diag(E) Q of every factor; training cuts their ranks to a common budget.

The importance of a parameter is its smoothed sensitivity |w g| times its variation. The score of a
triplet adds that of its entry of E and the means over its row and its column. The budget falls
from the initial to the final ranks along a cubic (Zhang et al. 2023, eq. 8-12). Layers, importance
and schedule are PEFT's. The cut is made here: PEFT's threshold cuts too many triplets where scores
are equal, and cannot keep all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.tuning.adapters.adapter import AdapterOptions
from lrcompress.tuning.adapters.methods import ADALORA
from lrcompress.tuning.adapters.on_factors import FactorAdapter, Wrapped
from lrcompress.tuning.adapters.peft_access import NAME, peft_for
from lrcompress.tuning.adapters.targets import Site

WARM_UP = 0.1  # share of the steps at the initial ranks
FINAL = 0.4  # share of the steps at the final ranks; the paper's is between .3 and .5
CUTS = 100  # at most, between the two
ORTHOGONALITY = 0.5  # weight of the penalty, as in PEFT


class BudgetedAdapter(FactorAdapter):
    """AdaLoRA. `options.rank` is the mean of the final ranks; the budget is their sum."""

    def __init__(self, options: AdapterOptions) -> None:
        super().__init__(ADALORA, options)
        self._allocator: Any = None
        self._final_ranks: dict[str, int] = {}
        self._last_cut = 0  # step of the last cut
        self._kept: dict[str, Tensor] = {}  # name of E -> mask, once the ranks are final

    @property
    def budget(self) -> int:
        return sum(self._final_ranks.values())

    def _attach_(
        self, module: nn.Module, sites: Sequence[Site], total_steps: int, seed: int
    ) -> None:
        if total_steps < 2:
            raise TuneError(
                f"adalora: the ranks cannot be distributed in {total_steps} steps; take 2 or more"
            )
        super()._attach_(module, sites, total_steps, seed)
        schedule = self._schedule(1, total_steps)
        self._allocator = peft_for("adalora").tuners.adalora.RankAllocator(module, schedule, NAME)
        self._allocator.target_bgt = self.budget
        self._last_cut = total_steps - schedule.tfinal

    def first_rank(self, site: Site, rank: int) -> int:
        self._final_ranks[site.name] = rank
        first = self.options.initial_rank or ceil(1.5 * rank)
        return min(site.largest_rank, max(first, rank))

    def config(self, site: Site, rank: int, total_steps: int) -> Any:
        return self._schedule(rank, total_steps)

    def _schedule(self, rank: int, total_steps: int) -> Any:
        final = max(1, round(FINAL * total_steps))
        warm_up = min(round(WARM_UP * total_steps), total_steps - final - 1)
        return peft_for("adalora").AdaLoraConfig(
            init_r=rank,
            target_r=rank,
            lora_alpha=self.options.scale_numerator,
            lora_dropout=self.options.dropout,
            total_step=total_steps,
            tinit=warm_up,
            tfinal=final,
            deltaT=max(1, (total_steps - final - warm_up) // CUTS),
        )

    def penalty(self) -> Tensor | None:
        """Return the weighted mean deviation of the factors P and Q from orthonormality."""
        terms = []
        for wrapped in self.wrapped:
            a, b = wrapped.wrapper.lora_A[NAME], wrapped.wrapper.lora_B[NAME]
            for gram in (a @ a.mT, b.mT @ b):  # (r, r)
                terms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram)))
        return ORTHOGONALITY * torch.stack(terms).mean() if terms else None

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        """Update the importance from this step's gradients; cut the triplets beyond the budget.

        The optimiser's next step changes a cut triplet again, so it may recover until the ranks are
        final.
        """
        allocator = self._allocator
        if step < self._last_cut:
            if self._gradients_are_finite():  # otherwise a gradient scaler has skipped the step
                allocator.update_ipt(self.module)
            budget, due = allocator.budget_schedule(step)
            if due:
                self._cut_(self._best(budget))
        else:
            if not self._kept:
                self._kept = self._best(self.budget)
            self._cut_(self._kept)

    def _gradients_are_finite(self) -> bool:
        sums = []  # one number each, so that there is one GPU synchronisation
        for parameter in (p for wrapped in self.wrapped for p in wrapped.parameters):
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:  # the step did not reach the layer
                parameter.grad = torch.zeros_like(parameter)
            sums.append(parameter.grad.sum())
        return bool(torch.isfinite(torch.stack(sums)).all())

    def _best(self, budget: int) -> dict[str, Tensor]:
        """Return the mask of the triplets to keep, by the name of E; ties keep the first."""
        scores = {name: self._scores(name) for name in self._values()}
        order = torch.cat(list(scores.values())).argsort(descending=True, stable=True)
        kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        kept[order[:budget]] = True
        parts = torch.split(kept, [len(score) for score in scores.values()])
        return dict(zip(scores, parts, strict=True))

    def _values(self) -> dict[str, nn.Parameter]:
        """All parameters E, each (r, 1), by their name in the network."""
        named = self.module.named_parameters()
        return {name: p for name, p in named if name.endswith(f"lora_E.{NAME}")}

    def _scores(self, name: str) -> Tensor:
        """Return the scores of the triplets of one update: (r,).

        A triplet whose entry of E never had a gradient scores 0, although the penalty gives its row
        and column gradients.
        """

        def element(part: str) -> Tensor:
            key = name.replace(f"lora_E.{NAME}", f"{part}.{NAME}")
            if key not in self._allocator.exp_avg_ipt:  # no importance computed yet
                return torch.zeros_like(self._values()[name])
            score: Tensor = self._allocator._element_score(key)
            return score

        value = element("lora_E").squeeze(1)
        whole = value + element("lora_A").mean(1) + element("lora_B").mean(0)
        return torch.where(value > 0, whole, 0)

    def _cut_(self, kept: Mapping[str, Tensor]) -> None:
        for name, value in self._values().items():
            value.masked_fill_(~kept[name].to(value.device).unsqueeze(1), 0)

    def last_rank(self, wrapped: Wrapped) -> int:
        return int((wrapped.wrapper.lora_E[NAME] != 0).sum())

    def _take_out_(self, module: nn.Module) -> None:
        super()._take_out_(module)
        self._allocator, self._final_ranks, self._kept = None, {}, {}

    def state_dict(self) -> dict[str, Tensor]:
        named = {"sensitivity": self._allocator.exp_avg_ipt, "spread": self._allocator.exp_avg_unc}
        named["kept"] = self._kept
        return {f"{what}.{name}": t for what, held in named.items() for name, t in held.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        allocator, self._kept = self._allocator, {}
        allocator.reset_ipt()
        for key, value in state.items():
            what, _, name = key.partition(".")
            if what == "sensitivity":
                allocator.exp_avg_ipt[name] = value
                allocator.ipt[name] = torch.zeros_like(value)
            elif what == "spread":
                allocator.exp_avg_unc[name] = value
            else:
                self._kept[name] = value
