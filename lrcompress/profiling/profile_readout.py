"""The readout that a profile was measured with, for later comparisons."""

from __future__ import annotations

import torch
from torch import nn

from lrcompress.network.batches import Batches
from lrcompress.network.call import call
from lrcompress.network.readout import Readout, first_readout
from lrcompress.profiling.profile import Profile


def profile_readout(module: nn.Module, profile: Profile, batches: Batches) -> Readout | None:
    """Return the readout of a profile; None where the profile was made without data.

    For an old profile that does not store its readout, it is reconstructed.
    """
    if profile.readout is not None:
        return profile.readout
    if profile.objective == "none":
        return None
    with torch.no_grad():
        raw = call(module, batches[0])
    return first_readout(raw, objective=profile.objective, pooling=profile.pooling)
