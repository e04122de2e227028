"""The `quayscope` command: gathers each part's `commands` module."""
