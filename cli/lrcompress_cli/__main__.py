"""Entry point of `python -m lrcompress_cli` and `torchrun -m lrcompress_cli`."""

from __future__ import annotations

from lrcompress_cli.main import main

if __name__ == "__main__":
    main()
