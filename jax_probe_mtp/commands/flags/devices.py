"""Flags that say on which devices, and in how many processes, a command runs."""

import argparse

import jax

from jax_probe_mtp.jobs import processes
from jax_probe_mtp.model.mesh import make_mesh, parse_mesh

# Of the flags, what each of several processes may have for itself; the files are compared, not their names.
MAY_DIFFER = (
    "command",
    "input",
    "output",
    "model",
    "masks",
    "process_id",
    "coordinator",
    "stats",
    "stats_json",
    "log_level",
)


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--mesh",
        metavar="data=D,tensor=T",
        help="split rows over D devices, or groups of T that share the weights "
        "(default: one device; with --distributed, all of them as data)",
    )
    parser.add_argument("--distributed", action="store_true", help="run as one of several processes, as on a TPU pod")
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of --distributed: process 0 (default: as the cluster says)"
    )
    parser.add_argument(
        "--num-processes", type=int, metavar="N", help="of --distributed: how many (default: as the cluster says)"
    )
    parser.add_argument(
        "--process-id", type=int, metavar="I", help="of --distributed: which one, from 0 (default: as the cluster says)"
    )


def join(args: argparse.Namespace) -> None:
    """Checks the flags, and joins the other processes where there are any; before anything else of JAX is used.

    Raises:
      ValueError: if flags do not go together, or the processes do not find each other.
    """
    if not args.distributed and any((args.coordinator, args.num_processes, args.process_id is not None)):
        raise ValueError("--coordinator, --num-processes and --process-id are of --distributed; give it too.")
    if args.distributed:
        processes.initialize(args.coordinator, args.num_processes, args.process_id)


def mesh_of(args: argparse.Namespace) -> jax.sharding.Mesh | None:
    """Gives the devices that the flags name; None for the default one."""
    if args.mesh:
        return make_mesh(*parse_mesh(args.mesh))
    return make_mesh(jax.device_count(), 1) if args.distributed else None
