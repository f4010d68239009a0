"""Runs in separate processes, for sweeps, searches and studies."""
