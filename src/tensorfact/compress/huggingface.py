"""Compressed checkpoints inside transformers: one model type, ``"tensorfact"``, for every family it knows.

`register` teaches `transformers.AutoConfig` the model type. Reading such a config builds, once per family, a subclass
of the family's configuration and of each of its model classes; the model subclass swaps the recipe's linear layers for
the module of its method (such as `tensorfact.torch.LowRankLinear`) as it is constructed, so that `from_pretrained` sees
a model that fits the file. In memory the configuration keeps the family's own `model_type` (tokenizers, weight
renamings, generation and pipelines look at it); on disk it says ``"tensorfact"``, which no one without this package can
load.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from tensorfact.compress._hf_classes import (
    FORMAT_VERSION,
    INSTALL,
    MODEL_TYPE,
    OVERWRITTEN,
    SHIM_NAME,
    architecture_class,
    family_config,
    model_class,
    module_names,
    recipe_of,
    stored,
    write_shim,
)
from tensorfact.compress._method import Rank

__all__ = [
    "FORMAT_VERSION",
    "MODEL_TYPE",
    "SHIM_NAME",
    "compressed_config",
    "config_class",
    "dense_config",
    "load_model",
    "module_names",
    "register",
    "write_shim",
]

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def compressed_config(
    config: dict[str, Any],
    ranks: Mapping[str, Rank],
    method: str = "lowrank",
    units: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the `config.json` of a compressed checkpoint from that of its source.

    `ranks` maps checkpoint names without ``.weight`` to ranks, tuples of bonds for a train. `units` holds what loading
    must know of weights that were factored together. `dense_config` is the inverse.
    """
    base = config.get("model_type")
    if not base or base == MODEL_TYPE:
        raise ValueError(f"config must name the model_type of an uncompressed model, got {base!r}")
    recipe = {
        "format_version": FORMAT_VERSION,
        "base_model_type": base,
        "base_config": {key: config[key] for key in OVERWRITTEN if key in config},
        "ranks": dict(ranks),
        "method": method,
        **({"units": dict(units)} if units else {}),
    }
    return stored({**config, MODEL_TYPE: recipe})


def dense_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the source's `config.json` from that of a compressed checkpoint."""
    recipe = recipe_of(config)
    dense = {k: v for k, v in config.items() if k not in OVERWRITTEN}
    return {**dense, **recipe["base_config"], "model_type": recipe["base_model_type"]}


def register() -> None:
    """Make `transformers.AutoConfig` know the model type, now or as soon as transformers loads it.

    Importing the auto classes takes seconds, so if they are not loaded yet a one-shot import hook waits for them.
    """
    module = sys.modules.get(_AUTO_CONFIG)
    if module is not None:
        _register(module)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AUTO_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        setattr(spec.loader, "exec_module", execute_and_register)  # noqa: B010 (mypy: a method is no variable)
        return spec


def _register(module: ModuleType) -> None:
    module.AutoConfig.register(MODEL_TYPE, config_class(), exist_ok=True)


@functools.cache
def config_class() -> type[Any]:
    """Return `TensorfactConfig`, which turns a compressed `config.json` into the configuration of its family.

    Needs transformers; made on the first call.
    """
    import transformers

    base: Any = transformers.PreTrainedConfig

    class TensorfactConfig(base):  # type: ignore[misc]
        model_type = MODEL_TYPE

        def __new__(cls, **kwargs: Any) -> Any:
            # PreTrainedConfig makes itself once without arguments to learn its defaults.
            return family_config(recipe_of(kwargs)["base_model_type"])(**kwargs) if kwargs else super().__new__(cls)

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            return family_config(recipe_of(config_dict)["base_model_type"]).from_dict(config_dict, **kwargs)

        @classmethod
        def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
            """Do nothing: transformers would copy this library's source into every saved checkpoint."""

    return TensorfactConfig


def load_model(path: str | Path, auto_class: Any = None, **kwargs: Any) -> Any:
    """Load a compressed checkpoint directory as the model class named in its `architectures`.

    Parameters
    ----------
    path : str or Path
        The directory. Nothing is fetched, nothing is unpickled.
    auto_class : class or str, optional
        Another class to load it as, such as ``"AutoModel"`` or `transformers.AutoModelForSequenceClassification`.
    **kwargs
        Passed to `from_pretrained` (``dtype``, ``device_map``, ...).

    Raises
    ------
    ValueError
        If `path` is no compressed checkpoint, its recipe does not fit its tensors, or, without `auto_class`, its class
        is unknown or a tensor of the model is missing.
    ImportError
        If torch or transformers is missing.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"loading a model needs torch and transformers: {INSTALL}") from error

    register()
    path = Path(path)
    if not (path / "config.json").is_file():
        raise ValueError(f"path must be a checkpoint directory with a config.json, got {str(path)!r}")
    options = {"trust_remote_code": False, **kwargs, "local_files_only": True, "use_safetensors": True}
    config: Any = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if not hasattr(type(config), "base_model_type"):
        raise ValueError(f"path must be a compressed checkpoint, got model_type {config.model_type!r} in {str(path)!r}")
    if auto_class is not None:
        cls = getattr(transformers, auto_class) if isinstance(auto_class, str) else auto_class
        return cls.from_pretrained(path, **options)
    names = config.architectures or []
    base = architecture_class(names)
    if base is None:
        raise ValueError(f"architectures in config.json must name a model class of transformers, got {names}")
    cls = model_class(base, config.__class__)
    model, info = cls.from_pretrained(path, **{**options, "output_loading_info": True})
    if info["missing_keys"]:
        raise ValueError(f"{str(path)!r} lacks tensors of {names}: {', '.join(sorted(info['missing_keys'])[:5])}")
    return model
