"""The model and the data of a run, loaded and fingerprinted."""

from __future__ import annotations

from dataclasses import dataclass

from lrcompress.fingerprint import fingerprint_batches, model_fingerprint
from lrcompress.pipeline.options import SourceOptions
from lrcompress.profiling.batches import Batch
from lrcompress.profiling.set_aside import SetAside, set_aside
from lrcompress.sources.data import example_batch, kind_of_data, load_batches
from lrcompress.sources.models import LoadedModel, load_model


@dataclass(frozen=True, eq=False)
class Loaded:
    model: LoadedModel
    batches: list[Batch] | None
    aside: SetAside | None  # the batches in three parts; None without data
    model_fingerprint: str
    data_fingerprint: str  # "" without data

    def example(self) -> Batch:
        """For tracing and checking; the same at each call."""
        return self.batches[0] if self.batches else example_batch(self.model)


def load_sources(options: SourceOptions) -> Loaded:
    """Raises ModelError and DataError for what cannot be read."""
    if options.data is not None:
        kind_of_data(options.data)
    model = load_model(
        options.model,
        weights=options.weights,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
    )
    batches = None
    if options.data is not None:
        batches = load_batches(options.data, model, options.data_options)
    return Loaded(
        model,
        batches,
        set_aside(batches) if batches else None,
        model_fingerprint(model.module),
        "" if batches is None else fingerprint_batches(batches),
    )
