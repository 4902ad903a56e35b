"""The autoregressive target: its cache, its forward over trees, its own way of decoding."""
