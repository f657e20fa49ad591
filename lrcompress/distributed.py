"""Several processes of one run, as torchrun starts them. In a single process nothing here does
anything, and torch.distributed is not even imported.

Every process runs the same program on the same model and data, and meets the others where work is
shared out: so each has to call the same verbs in the same order. All collectives are torch's own,
over gloo on the CPU and nccl on CUDA, by the device of the tensor. What one process raises at such
a place, all raise.
"""

from __future__ import annotations

import atexit
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from lrcompress.errors import LrcompressError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
# Gloo notices at once that a process is gone; this ends the wait for one that hangs. One process
# may fit a whole vocabulary, or export, while the others wait
TIMEOUT = timedelta(hours=1)

_alone: ContextVar[bool] = ContextVar("alone", default=False)


class ProcessLost(LrcompressError):
    """Another process of the run ended, or did not answer in time."""


def world_size() -> int:
    """How many processes share the work; 1 without torchrun."""
    return _place()[1]


def rank() -> int:
    """This process's number among them, from 0."""
    return _place()[0]


def is_main() -> bool:
    """Whether this is the one process that writes files and speaks to the user."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process is the only one: what it calls is not shared out."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def shard(items: Sequence[T]) -> Sequence[T]:
    """Every n-th of the items: batches are sorted by length, so all processes get all lengths."""
    return items if world_size() == 1 else items[rank() :: world_size()]


def alike(items: Sequence[T], cost: Callable[[T], float]) -> Sequence[T]:
    """The order in which neighbours cost alike, so that those who share them out end together;
    as they come in a single process."""
    return items if world_size() == 1 else sorted(items, key=cost, reverse=True)


def portions(items: Sequence[T]) -> list[Sequence[T]]:
    """As many items at a time as there are processes, for `shared_out`."""
    return [items[i : i + world_size()] for i in range(0, len(items), world_size())]


def shared_out(portion: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """`work` of each item of a portion, one item a process; everybody gets all results.

    Raises what the work of a process raised; of several, the first one's.
    """
    if world_size() == 1:
        return [work(item) for item in portion]
    own = portion[rank() : rank() + 1]
    outcome = _attempt(lambda: [work(item) for item in own])
    return [value for done in gathered(outcome) for value in done.result()]


def in_turns(items: Sequence[T], work: Callable[[T], R]) -> Iterator[R]:
    """`work` of each item in their order, shared out portion by portion.

    Sums over the results are taken in the same order by any number of processes: to the bit the
    same.
    """
    for portion in portions(items):
        yield from shared_out(portion, work)


def on_main(work: Callable[[], R]) -> R:
    """What `work` gives, or raises, in the first process; the others wait for it."""
    if world_size() == 1:
        return work()
    outcome: _Outcome[R] | None = None
    if is_main():
        with alone():
            outcome = _attempt(work)
    packed = [_packed(outcome) if is_main() else None]
    with _meeting() as dist:
        dist.broadcast_object_list(packed, src=0)
    if outcome is None:
        outcome = cast("_Outcome[R]", _unpacked(cast(bytes, packed[0])))
    return outcome.result()


@contextmanager
def failing_together() -> Iterator[None]:
    """A part of the work that each process does for itself: if one fails, all do, at its end.

    Nothing within may wait for another process.
    """
    if world_size() == 1:
        yield
        return
    outcome: _Outcome[None] = _Outcome()
    try:
        yield
    except Exception as error:
        outcome = _Outcome(error=error)
    for theirs in gathered(outcome):
        theirs.result()


def gathered(value: T) -> list[T]:
    """Everybody's value, by rank."""
    if world_size() == 1:
        return [value]
    packed: list[Any] = [None] * world_size()
    own = _packed(value)
    with _meeting() as dist:
        dist.all_gather_object(packed, own)
    return [value if i == rank() else _unpacked(held) for i, held in enumerate(packed)]


def same_everywhere(value: object) -> bool:
    """Whether everybody calls with an equal value."""
    return all(theirs == value for theirs in gathered(value))


def all_reduce_(tensor: Tensor) -> Tensor:
    """The sum of everybody's tensor, in its place; it must be contiguous."""
    if world_size() > 1:
        with _meeting() as dist:
            dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait for everybody."""
    gathered(None)


def close() -> None:
    """Leave the others; done at exit too. They notice at once if they still wait for us.

    A process group that the caller made is left alone.
    """
    if _join.cache_info().currsize and _join() and _torch().is_initialized():
        _torch().destroy_process_group()


@cache
def store() -> Any:
    """torchrun's table of keys and values, a torch.distributed.Store: it outlives the group."""
    return next(_torch().rendezvous("env://", timeout=TIMEOUT))[0]


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """What a process came to: a value, or an error."""

    value: T | None = None
    error: BaseException | None = None

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


def _place() -> tuple[int, int]:
    """(rank, world size): of a group that the caller has made, or of torchrun's environment."""
    if _alone.get():
        return 0, 1
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if any(name not in os.environ for name in ENVIRONMENT):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@cache
def _join() -> bool:
    """See to it that there is a process group; whether it is one of our own."""
    import torch

    dist = _torch()
    if dist.is_initialized():
        return False
    # Imported later, by torch.onnx say, it would keep the group as a default of its functions:
    # `close` could not end the group's threads, and one of them that runs on while Python ends
    # aborts the process
    import torch.distributed.nn.functional

    place, size = _place()
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("lrcompress", store()),
        rank=place,
        world_size=size,
        timeout=TIMEOUT,
    )
    atexit.register(close)
    return True


def _torch() -> Any:
    import torch.distributed

    return torch.distributed


@contextmanager
def _meeting() -> Iterator[Any]:
    """torch.distributed, joined. Its errors (gloo's are plain RuntimeErrors) become ours."""
    try:
        _join()
        yield _torch()
    except RuntimeError as cause:
        raise ProcessLost(
            f"process {rank()} of {world_size()}: another process of the run ended, or did not "
            f"answer within {TIMEOUT}; see what it said, and rerun the same command to resume"
        ) from cause


def _attempt(work: Callable[[], R]) -> _Outcome[R]:
    try:
        return _Outcome(work())
    except Exception as error:  # whatever it is, the others must not wait for us in vain
        return _Outcome(error=error)


def _packed(value: object) -> bytes:
    """Pickled, tensors included. An error that pickle cannot carry goes as its words."""
    if isinstance(value, _Outcome) and value.error is not None:
        value = _Outcome(error=portable(value.error))
    import torch

    stream = BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _unpacked(packed: bytes) -> Any:
    """From another process of this run. What lay on its GPU comes to ours."""
    import torch

    def here(storage: Any, location: str) -> Any:
        return storage.cuda() if location.startswith("cuda") else storage

    return torch.load(BytesIO(packed), map_location=here, weights_only=False)


def portable(error: BaseException) -> BaseException:
    """The error where pickle gives back its class and words, else its words; in a note of it where
    it was raised."""
    carried: BaseException | None
    try:
        carried = pickle.loads(pickle.dumps(error))
    except Exception:  # a class of the user's, say, whose constructor takes something else
        carried = None
    if carried is None or type(carried) is not type(error) or str(carried) != str(error):
        carried = RuntimeError(f"{type(error).__name__}: {error}")
    raised = "".join(traceback.format_exception(error))
    carried.add_note(f"In process {rank()} of {world_size()}:\n{raised}")
    return carried
