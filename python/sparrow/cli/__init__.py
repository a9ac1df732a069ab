"""The `sparrow` command."""
