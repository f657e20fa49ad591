"""The only module that imports PEFT: wraps the module of a factor.

Each factor is wrapped in a separate holder, with PEFT's public configuration. PEFT matches names by
their ends: in a whole network the target `fc.down` would also match `block.fc.down`. A holder has
no other module to match. PEFT's convolution adapter ignores dilation, padding mode and groups, so
it would train another function than it merges; these settings are corrected here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.messages import one_line
from lrcompress.tuning.adapters.low_rank_layer import convolution_like
from lrcompress.tuning.adapters.targets import Site

NAME = "default"  # PEFT's name of the adapter
HALVES = (torch.float16, torch.bfloat16)


def peft_for(what: str) -> Any:
    """Return the peft module.

    Raises:
        TuneError: it cannot be imported.
    """
    try:
        return import_module("peft")
    except ImportError as cause:
        raise TuneError(
            f'{what}: needs peft ({one_line(cause)}); pip install "lrcompress[tune]"'
        ) from cause


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context that seeds torch's global generator, from which PEFT draws, and restores it."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def wrap(site: Site, root: nn.Module, config: Any) -> tuple[nn.Module, nn.Module]:
    """Return PEFT's wrapper of the site, and the module that replaces `root` in the network.

    `root` is the site's owner, or the wrapper of the owner's other raw parameters.

    Raises:
        TuneError: PEFT rejects the site; the message quotes it.
    """
    holder = nn.ModuleDict({"factor": root})
    place = f"factor.{site.parameter}"
    if site.kind == "raw":
        config.target_modules, config.target_parameters = [], [place]
    else:
        config.target_modules = {"factor"}
    before = set(root.modules())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft_for(site.layer).inject_adapter_in_model(config, holder, NAME)
    except (ValueError, TypeError) as cause:
        raise TuneError(
            f"{site.name}: peft cannot adapt it ({one_line(cause)}); leave the layer out"
        ) from cause
    new_root = holder["factor"]
    (wrapper,) = (m for m in new_root.modules() if m not in before and hasattr(m, "base_layer"))
    if site.kind in ("conv1d", "conv2d"):
        _match_convolution_(site.owner, wrapper)
    for module in new_root.modules():
        if module not in before:
            module.training = site.owner.training
            for parameter in module.parameters(recurse=False):
                if parameter.dtype in HALVES:  # small steps would be rounded away
                    parameter.data = parameter.data.float()
    wrapper.register_forward_pre_hook(_check_axes)
    return wrapper, new_root


def _check_axes(wrapper: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Reject unbatched images under DoRA: PEFT would take the channels for examples.

    The presence of a hook also keeps torch's encoder from its fast path, which reads the frozen
    weights.
    """
    if getattr(wrapper, "use_dora", {}).get(NAME, False):
        base = wrapper.base_layer
        if isinstance(base, nn.Conv1d | nn.Conv2d) and inputs[0].dim() < base.weight.dim():
            raise TuneError("dora: a convolution's input needs a batch axis; add one")


def _match_convolution_(owner: nn.Module, wrapper: nn.Module) -> None:
    """Give the adapter's first convolution every setting of the frozen one."""
    assert isinstance(owner, nn.Conv1d | nn.Conv2d)
    inner = getattr(wrapper, "lora_A", {})
    if NAME not in inner or not isinstance(inner[NAME], nn.Module):
        return  # AdaLoRA has no inner layer and uses the frozen layer's settings
    first = inner[NAME]
    inner[NAME] = convolution_like(owner, first.out_channels).to(first.weight)


def _pair(site: Site, wrapper: Any) -> tuple[Tensor, Tensor]:
    if site.kind == "embedding":
        return wrapper.lora_embedding_B[NAME], wrapper.lora_embedding_A[NAME]
    return wrapper.lora_B[NAME].weight, wrapper.lora_A[NAME].weight


def read_update(site: Site, wrapper: Any) -> tuple[Tensor, Tensor, float]:
    """Return B: (groups, m, r), A: (groups, r, n) and the scaling of the update scaling * B A."""
    left, right = (factor.detach() for factor in _pair(site, wrapper))
    groups, m, n = site.matrix.shape
    scaling = float(wrapper.scaling[NAME])
    if site.kind == "raw":  # B: (m, r groups), the rank before the group
        return left.reshape(m, -1, groups).permute(2, 0, 1), right.reshape(groups, -1, n), scaling
    return left.reshape(groups, m, -1), right.reshape(groups, -1, n), scaling


@torch.no_grad()
def write_update_(site: Site, wrapper: Any, left: Tensor, right: Tensor) -> None:
    """Write B and A, as `read_update` returns them, into the wrapper."""
    b, a = _pair(site, wrapper)
    b.copy_((left.permute(1, 2, 0) if site.kind == "raw" else left).reshape(b.shape))
    a.copy_(right.reshape(a.shape))
