"""Environment of the programs that tests start on several CPU devices."""

import os


def cpu_devices(number):
    """Makes XLA see so many CPU devices, beside what its flags say here."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"
    return {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
