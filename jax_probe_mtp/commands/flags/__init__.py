"""Groups of flags, and what they stand for."""
