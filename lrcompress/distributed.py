"""Work shared by several processes of one run, started by torchrun.

In a single process all functions are no-ops, and torch.distributed is not imported.

Every process runs the same program on the same model and data. The processes synchronise where
work is shared, so each must call the same functions in the same order. All collectives are
torch's, over gloo on the CPU and nccl on CUDA, by the device of the tensor. If one process raises
at a synchronisation point, all raise.
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
from functools import cache, wraps
from io import BytesIO
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from lrcompress.errors import LrcompressError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
# Gloo detects at once that a process has ended; the timeout is for one that hangs. It is long
# because one process may fit a whole vocabulary, or export, while the others wait
TIMEOUT = timedelta(hours=1)

_alone: ContextVar[bool] = ContextVar("alone", default=False)


class ProcessLost(LrcompressError):
    """Another process of the run has ended, or did not respond in time."""


def world_size() -> int:
    """Number of processes that share the work; 1 without torchrun."""
    return _rank_and_size()[1]


def rank() -> int:
    """Rank of this process, from 0."""
    return _rank_and_size()[0]


def is_main() -> bool:
    """Whether this is the process that writes files and prints messages (rank 0)."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Context in which this process acts as a single one: its calls are not shared."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def shard(items: Sequence[T]) -> Sequence[T]:
    """This process's items: every n-th, so that sorted batches give all processes all lengths."""
    return items if world_size() == 1 else items[rank() :: world_size()]


def alike(items: Sequence[T], cost: Callable[[T], float]) -> Sequence[T]:
    """With several processes, sort by decreasing cost: a portion's items then take similar time."""
    return items if world_size() == 1 else sorted(items, key=cost, reverse=True)


def portions(items: Sequence[T]) -> list[Sequence[T]]:
    """Split items into portions of one item per process, for `shared_out`."""
    return [items[i : i + world_size()] for i in range(0, len(items), world_size())]


def shared_out(portion: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """Run `work` on a portion, one item per process, and return all results to every process.

    Raises the error of the lowest rank whose work failed.
    """
    if world_size() == 1:  # an error kept in a local variable would keep its frames' tensors
        return [work(item) for item in portion]
    own = portion[rank() : rank() + 1]
    outcome = _attempt(lambda: [work(item) for item in own])
    return [value for done in gathered(outcome) for value in done.result()]


def in_turns(items: Sequence[T], work: Callable[[T], R]) -> Iterator[R]:
    """Yield `work(item)` for each item in order, computed portion by portion.

    The order does not depend on the number of processes: sums over the results are bit-identical.
    """
    for portion in portions(items):
        yield from shared_out(portion, work)


def on_main(work: Callable[[], R]) -> R:
    """Run `work` in rank 0 only; every process waits and returns, or raises, its outcome."""
    if world_size() == 1:
        return work()
    packed: list[Any] = [None]
    if is_main():
        with alone():
            outcome = _attempt(work)
        packed = [_packed(outcome)]
    with _process_group() as dist:
        dist.broadcast_object_list(packed, src=0)
    if not is_main():
        outcome = _unpacked(packed[0])
    return outcome.result()


def main_only(work: Callable[P, R]) -> Callable[P, R]:
    """Decorator: every call of `work` goes through `on_main`."""

    @wraps(work)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return on_main(lambda: work(*args, **kwargs))

    return call


@contextmanager
def failing_together() -> Iterator[None]:
    """Context for work without synchronisation: if one process fails, all raise at the end."""
    outcome: _Outcome[None] = _Outcome()
    try:
        yield
    except Exception as error:
        outcome = _Outcome(error=error)
    for theirs in gathered(outcome):
        theirs.result()


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    packed: list[Any] = [None] * world_size()
    own = _packed(value)
    with _process_group() as dist:
        dist.all_gather_object(packed, own)
    return [value if i == rank() else _unpacked(held) for i, held in enumerate(packed)]


def same_everywhere(value: object) -> bool:
    """Whether all processes pass an equal value."""
    return all(theirs == value for theirs in gathered(value))


def all_reduce_(tensor: Tensor) -> Tensor:
    """Replace a contiguous tensor, in place, by its sum over all processes."""
    if world_size() > 1:
        with _process_group() as dist:
            dist.all_reduce(tensor)
    return tensor


def close() -> None:
    """Destroy the process group that this module created. Also called at exit.

    Processes that wait for this one notice at once. A group made by the caller is kept.
    """
    if _join.cache_info().currsize and _join() and _torch().is_initialized():
        _torch().destroy_process_group()


@cache
def store() -> Any:
    """torchrun's key-value store (torch.distributed.Store). It outlives the process group."""
    return next(_torch().rendezvous("env://", timeout=TIMEOUT))[0]


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """The result of a process's work: a value or an error."""

    value: T | None = None
    error: BaseException | None = None

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


def _rank_and_size() -> tuple[int, int]:
    """(rank, world size), from an existing process group or from torchrun's environment."""
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
    """Create the process group unless one exists. Returns whether this module created it."""
    import torch

    dist = _torch()
    if dist.is_initialized():
        return False
    # If imported after the group exists (by torch.onnx, for example), this module keeps the group
    # as a default argument of its functions. `close` then cannot end the group's threads, and a
    # thread that still runs when Python exits aborts the process
    import torch.distributed.nn.functional

    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("lrcompress", store()),
        rank=rank(),
        world_size=world_size(),
        timeout=TIMEOUT,
    )
    atexit.register(close)
    return True


def _torch() -> Any:
    import torch.distributed

    return torch.distributed


@contextmanager
def _process_group() -> Iterator[Any]:
    """Yield torch.distributed with a process group; its RuntimeErrors become ProcessLost."""
    try:
        _join()
        yield _torch()
    except RuntimeError as cause:
        raise ProcessLost(
            f"process {rank()} of {world_size()}: another process of the run ended, or did not "
            f"respond within {TIMEOUT}; read its messages, and rerun the same command to resume"
        ) from cause


def _attempt(work: Callable[[], R]) -> _Outcome[R]:
    try:
        return _Outcome(work())
    except Exception as error:  # any error must reach the other processes, which wait
        return _Outcome(error=error)


def _packed(value: object) -> bytes:
    """Pickle a value, tensors included. An error that cannot be pickled is sent as its message."""
    if isinstance(value, _Outcome) and value.error is not None:
        value = _Outcome(error=portable(value.error))
    import torch

    stream = BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _unpacked(packed: bytes) -> Any:
    """Unpickle a value from another process of this run; CUDA tensors move to the local GPU."""
    import torch

    def here(storage: Any, location: str) -> Any:
        return storage.cuda() if location.startswith("cuda") else storage

    return torch.load(BytesIO(packed), map_location=here, weights_only=False)


def portable(error: BaseException) -> BaseException:
    """The error if pickle preserves its class and message, else a RuntimeError with its message.

    A note holds the rank and the traceback.
    """
    try:
        carried: BaseException = pickle.loads(pickle.dumps(error))
        same = type(carried) is type(error) and str(carried) == str(error)
    except Exception:  # for example, a class whose constructor takes other arguments
        same = False
    if not same:
        carried = RuntimeError(f"{type(error).__name__}: {error}")
    raised = "".join(traceback.format_exception(error))
    carried.add_note(f"In process {rank()} of {world_size()}:\n{raised}")
    return carried
