"""A set of choices to the plain data they compose to: all that Hydra does here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from mist.catalog import roots
from mist.errors import InputError

Address = tuple[str, ...]

POOLS = "pools"
MISSING = "???"  # OmegaConf's mark of an option that must be given


@dataclass(frozen=True)
class Composition:
    """What a set of choices composes to, before any value is set."""

    data: Mapping[str, Any]
    slots: Mapping[Address, str]  # where a group is chosen -> Hydra's name of that place
    missing: tuple[Address, ...]
    interpolated: bool


_on_top: list[Path] = []  # the directories above the packaged one, while Hydra composes


class _UserConf(SearchPathPlugin):
    def manipulate_search_path(self, search_path: Any) -> None:
        for directory in reversed(_on_top):
            search_path.prepend("mist", f"file://{directory}")


Plugins.instance().register(_UserConf)

# asked for until Hydra 1.3, deprecated from 1.4
_VERSION_BASE: dict[str, Any] = {"version_base": None} if hydra.__version__.startswith(("1.2", "1.3")) else {}


@lru_cache(maxsize=512)  # composing takes 50 ms, and a sweep asks again and again for the same few choices
def composed(chosen: tuple[tuple[str, str], ...], now: tuple[tuple[str, int], ...]) -> Composition:  # noqa: ARG001
    """The composition of ``chosen`` (Hydra's name of a place, choice), read again when the stamp ``now`` differs."""
    *own, packaged = roots("conf")
    _on_top[:] = own
    try:
        with hydra.initialize_config_dir(str(packaged), job_name="mist", **_VERSION_BASE):
            config = hydra.compose(
                "config", [f"{slot}='{choice}'" for slot, choice in chosen], return_hydra_config=True
            )
    except (YAMLError, HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        raise _unreadable(error) from None
    finally:
        _on_top.clear()
    return _composition(config)


def _composition(config: DictConfig) -> Composition:
    names = [str(name) for name in config.hydra.runtime.choices if not str(name).startswith("hydra/")]
    slots = {tuple((name.partition("@")[2] or name.replace("/", ".")).split(".")): name for name in names}
    data = plain_data(config, resolve=False)
    del data["hydra"]
    _check_pools(data)
    leaves = dict(_leaves(data))
    missing = tuple(address for address, value in leaves.items() if value == MISSING)
    return Composition(data, slots, missing, any("${" in v for v in leaves.values() if isinstance(v, str)))


def _check_pools(data: Mapping[str, Any]) -> None:
    pools = data.get(POOLS)
    root = roots("conf")[0] / "config.yaml"
    if not isinstance(pools, dict) or not all(isinstance(pool, dict) for pool in pools.values()):
        raise InputError(POOLS, pools, f"a cluster lays out pools as a map of maps ({root.parent})")
    for pool in pools:
        if pool in data or pool in attributes(pools):
            raise InputError(f"{POOLS}.{pool}", "(a name)", "another address has that name")


def _leaves(node: Mapping[str, Any], address: Address = ()) -> Iterable[tuple[Address, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*address, str(key)))
        else:
            yield (*address, str(key)), value


def _unreadable(error: Exception) -> InputError:
    """What is wrong with the user's files, in one line."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        file, line = Path(error.problem_mark.name), error.problem_mark.line + 1
        file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        return InputError("", f"{file}:{line}", f"not valid YAML: {error.problem}")
    text = " ".join(str(error.__cause__ or error).partition("Config search path:")[0].split())
    return InputError("", " and ".join(str(root) for root in roots("conf")), text)


def plain_data(config: Any, resolve: bool) -> dict[str, Any]:
    """Nested dicts instead of OmegaConf's own objects."""
    data = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def attributes(pools: Mapping[str, Any]) -> list[str]:
    """What the pools can be asked for, each once."""
    return list(dict.fromkeys(key for pool in pools.values() for key in pool))
