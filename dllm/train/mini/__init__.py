"""Data and recipe of `mini`: a model with an open vocabulary, spelled by letter pairs."""
