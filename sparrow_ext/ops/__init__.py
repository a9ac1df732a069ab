"""One module per operator: the typed wrapper, the fake kernel, the reference and the eager composition a user would write."""
