"""Ray, started for one sweep on this machine, or joined where it runs."""

import os
import secrets
import socket
from pathlib import Path
from typing import Any

from mist.errors import InputError
from mist.sweep.options import RayOptions

# What a private Ray needs in the environment of this process and of its own: nothing is sent home, no token file is
# written to HOME, only who knows this run's token may talk to it, and CUDA_VISIBLE_DEVICES is left alone.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
TOKEN = ("RAY_AUTH_MODE", "RAY_AUTHTOKEN")


def connect(options: RayOptions) -> Any:
    """The ``ray`` module, initialised: a private Ray on this machine, or the running one that is named.

    RAY_ADDRESS is not listened to: a sweep never joins a cluster it was not told of.
    """
    os.environ.update(_QUIET)
    if options.address is None:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    elif Path("~/.ray/auth_token").expanduser().is_file() or "RAY_AUTH_TOKEN" in os.environ:
        os.environ.setdefault(
            "RAY_AUTH_MODE", "token"
        )  # or a cluster with authentication lets us wait 20 s for nothing
    import ray  # noqa: PLC0415  half a second, which serial sweeps and --help do not spend

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if options.address is None:
        store = int(options.object_store)
        ray.init("local", num_cpus=options.cpus, include_dashboard=False, object_store_memory=store, **quiet)
        return ray
    knock(options.address)
    package = str(Path(__file__).parents[1])
    try:  # the cluster computes with this driver's sources, whatever version it has installed
        ray.init(options.address, runtime_env={"py_modules": [package]}, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = f"no Ray cluster answers there (if it has authentication, set RAY_AUTH_MODE=token): {error}"
        raise InputError("ray.address", options.address, why) from None
    return ray


def knock(address: str) -> None:
    """InputError where nothing listens. Ray tries a dead address for more than a minute; this, five seconds."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # auto, or a name that only Ray knows how to read
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise InputError("ray.address", address, f"no Ray cluster answers there: {error}") from None
