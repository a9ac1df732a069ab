"""One module per operator: the typed wrapper, the fake kernel, the reference, and the eager composition of a user."""
