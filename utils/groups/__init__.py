"""The groups of general options, joined by utils/config.py."""
