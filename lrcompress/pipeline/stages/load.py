"""The model and the data of a run, loaded, converted and fingerprinted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lrcompress.conversion.convert import convert_
from lrcompress.errors import DataError, ModelError
from lrcompress.fingerprint import fingerprint_batches
from lrcompress.formats.files import read_json
from lrcompress.formats.run_json import read_record
from lrcompress.messages import label
from lrcompress.network.batches import Batch, Batches
from lrcompress.network.held_out_examples import SetAside, set_aside
from lrcompress.network.identity import ModelIdentity, identify, what_differs
from lrcompress.pipeline.options import SourceOptions
from lrcompress.profiling.stored_formats import refuse_stored_formats
from lrcompress.sources.data import kind_of_data, load_data
from lrcompress.sources.example import example_batch
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.models import load_model


@dataclass(frozen=True, eq=False)
class Loaded:
    model: LoadedModel
    batches: list[Batch] | None
    aside: SetAside | None  # the batches split into three parts; None without data
    identity: ModelIdentity
    data_fingerprint: str  # "" without data

    @property
    def calibration(self) -> Batches | None:
        """The batches on which moments are measured."""
        return None if self.aside is None else self.aside.calibration

    @property
    def judging(self) -> Batches | None:
        """The held-out examples that are used for choices."""
        return None if self.aside is None else self.aside.judging

    @property
    def confirming(self) -> Batches | None:
        """The held-out examples that are used for no choice; None if there are too few."""
        return self.aside.confirming if self.aside is not None and self.aside.spared else None

    def differs(self, known: ModelIdentity | None) -> str:
        """Return how the model differs from the known one; "" if no difference is found."""
        if known is None:
            return ""
        return what_differs(known, self.identity, self.model.module, self.first)

    @property
    def first(self) -> Batch | None:
        """The first batch of the data; None without data."""
        return self.batches[0] if self.batches else None

    def example(self) -> Batch:
        """Return a batch for tracing and checking, the same at each call."""
        return self.batches[0] if self.batches else example_batch(self.model)


def load_source_model(options: SourceOptions) -> LoadedModel:
    """Load the model alone, as far as the options trust it."""
    return load_model(
        options.model,
        weights=options.weights,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
        trust_factory=options.trust_factory,
    )


def load_sources(options: SourceOptions) -> Loaded:
    """Load the model and the data; convert layers to standard ones where an example allows it.

    Raises:
        ModelError: the model cannot be read, or its weights are already stored in number formats.
        DataError: the data cannot be read.
    """
    if options.data is not None:
        kind_of_data(options.data)
    model = load_source_model(options)
    refuse_stored_formats(model.module, options.model, _original(model))
    _check_names(model.module)
    batches = None
    if options.data is not None:
        data = load_data(options.data, model, options.data_options)
        model = replace(model, warnings=(*model.warnings, *data.warnings))
        batches = data.batches
    example = batches[0] if batches else _made_up(model)
    if example is not None:
        convert_(model.module, example)
    return Loaded(
        model,
        batches,
        set_aside(batches) if batches else None,
        identify(model.module, example, configuration(model)),
        "" if batches is None else fingerprint_batches(batches),
    )


def _original(model: LoadedModel) -> str:
    """Return the reference of the network that a run folder was made from; "" for others."""
    if model.reference.kind != "run" or model.folder is None:
        return ""
    return read_record(model.folder).reference.place


def _check_names(module: nn.Module) -> None:
    """Raise ModelError for a name that cannot be written: files hold UTF-8 without nulls."""
    for named in (module.named_modules(), module.named_parameters(), module.named_buffers()):
        for name, _ in named:
            if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
                raise ModelError(
                    f"{label(name)}: a name with a null or half of a surrogate pair cannot be "
                    "written; rename this part of the model"
                )


def configuration(model: LoadedModel) -> Mapping[str, Any]:
    """Return the entries of the model's config.json; empty without one."""
    path = None if model.folder is None else model.folder / "config.json"
    return {} if path is None or not path.is_file() else read_json(path, foreign=True)


def _made_up(model: LoadedModel) -> Batch | None:
    """Return a made-up batch; None if the model's inputs are unknown, so nothing is converted."""
    try:
        return example_batch(model)
    except DataError:
        return None
