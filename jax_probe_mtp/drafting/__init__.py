"""Where drafts come from, and the tree they make."""

from jax_probe_mtp.drafting.candidates import NO_PARENT, NO_TOKEN, Candidates, chain
from jax_probe_mtp.drafting.check_source import check_source
from jax_probe_mtp.drafting.merged import Merged
from jax_probe_mtp.drafting.ngram import Ngram
from jax_probe_mtp.drafting.plain import Plain
from jax_probe_mtp.drafting.probe import DynamicProbe, Probe
from jax_probe_mtp.drafting.recycle import Recycle
from jax_probe_mtp.drafting.source import DraftSource, SourceState
from jax_probe_mtp.drafting.spec import draft_name, parse_draft

__all__ = [
    "NO_PARENT",
    "NO_TOKEN",
    "Candidates",
    "DraftSource",
    "DynamicProbe",
    "Merged",
    "Ngram",
    "Plain",
    "Probe",
    "Recycle",
    "SourceState",
    "chain",
    "check_source",
    "draft_name",
    "parse_draft",
]
