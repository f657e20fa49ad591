"""The origin of a figure, stored in every result file: machine, versions, provider, command."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrcompress.export.bench import device_name
from lrcompress.export.session import EXECUTION_PROVIDERS, ProviderName
from lrcompress.reporting.environment import describe_environment

RESULTS = Path(__file__).parent / "results"
SCHEMA_VERSION = 1


def describe_machine(*, provider: ProviderName = "cpu", threads: int) -> dict[str, str]:
    """Return label → value. The load is what else kept the machine busy at this moment."""
    found = describe_environment(
        device=device_name(provider), provider=EXECUTION_PROVIDERS[provider][0], threads=threads
    )
    return found | {"memory": memory(), "load before": load()}


def memory() -> str:
    """Return the memory of the whole machine."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def load() -> str:
    """Return the load: processes that wanted a core, averaged over the last minute."""
    return f"{os.getloadavg()[0]:.2f}"


def this_command() -> str:
    """Return the command as run from the repository's root, without this machine's folders."""
    # __main__ has a spec under `python -m`, where argv[0] would be a path on this machine
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = ["-m", spec.name] if spec else [Path(sys.argv[0]).name]
    given = [re.sub(r"^(-[^=]*=)?/.*/", r"\1", part) for part in sys.argv[1:]]
    return shlex.join(["python", *started, *given])


def write_result(path: Path, machine: Mapping[str, str], body: Mapping[str, Any]) -> None:
    """Write `body` with the machine and the command, replacing the file as a whole."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "command": this_command(),
        "machine": {**machine, "load after": load()},
        **body,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
