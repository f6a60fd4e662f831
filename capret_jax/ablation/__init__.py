"""Ablation of captions, objects and training: a grid of runs, their contrasts and a report."""
