"""Programs as they are lowered for a GPU, which need not be here."""

import jax

_H200 = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
_MESH = jax.sharding.AbstractMesh(
    (1,),
    ("x",),
    axis_types=(jax.sharding.AxisType.Auto,),  # explicit axes would make gathers say how their results lie
    abstract_device=_H200,
)


def lowered_for_cuda(function, *args):
    """Gives the text of a function, jitted or to be, lowered for one H200."""
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    with jax.sharding.use_abstract_mesh(_MESH):
        return jitted.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
