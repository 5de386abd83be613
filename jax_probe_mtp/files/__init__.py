"""JSON lines in, whole files out; nothing here knows JAX."""
