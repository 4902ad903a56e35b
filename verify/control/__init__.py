"""Controllers: how far to draft and how much to verify in a round."""
