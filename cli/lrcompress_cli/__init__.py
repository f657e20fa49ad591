"""The `lrcompress` command: thin commands over the library, loaded when they are run."""
