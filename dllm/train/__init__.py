"""Training objectives and recipes, the bundled model's among them."""
