"""Training of drafters, and of the miniature target they are measured on."""
