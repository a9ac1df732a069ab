"""The miniature: a small video LLM trained on a synthetic world, what ships of it, and how it is made."""
