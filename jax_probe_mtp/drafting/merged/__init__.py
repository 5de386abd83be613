"""The merged draft: one tree from everything that the model and the text have said."""

from jax_probe_mtp.drafting.merged.source import Merged

__all__ = ["Merged"]
