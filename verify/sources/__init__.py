"""Drafts without a model, from texts seen before."""
