"""Measuring what a decoding method costs and what it gets right."""
