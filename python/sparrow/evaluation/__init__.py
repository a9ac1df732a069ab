"""Evaluation on held-out synthetic clips: tau, speed, losslessness, and whether the target watches."""
