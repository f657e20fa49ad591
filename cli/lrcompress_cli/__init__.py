"""The `lrcompress` command: thin commands over the library, imported when they are run."""
