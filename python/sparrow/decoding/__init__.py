"""The decode loop: generate, verify, compare."""
