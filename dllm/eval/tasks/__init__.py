"""Questions and how answers to them are judged."""
