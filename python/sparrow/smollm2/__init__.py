"""SmolLM2-135M-Instruct as a target: a pretrained language model from PyPI, taught to watch the synthetic world."""
