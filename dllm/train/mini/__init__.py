"""Data and recipe of the bundled model `mini`: an open vocabulary, spelled by letter pairs."""
