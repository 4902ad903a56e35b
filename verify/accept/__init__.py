"""Acceptance rules: which tokens the target emits in a round."""
