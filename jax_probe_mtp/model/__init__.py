"""The transformer and the next token; nothing here knows trees."""

from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.mesh import make_mesh, sharded_params
from jax_probe_mtp.model.params import Params, abstract_params, check_params, random_params

__all__ = [
    "Checkpoint",
    "ModelConfig",
    "Params",
    "abstract_params",
    "check_params",
    "make_mesh",
    "random_params",
    "sharded_params",
]
