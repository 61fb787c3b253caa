"""The on-disk recipe of a compressed checkpoint, and the transformers classes that it turns into."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorfact.compress._method import Method, Rank, as_rank, create, methods, owner, reader

MODEL_TYPE = "tensorfact"
FORMAT_VERSION = 1
SHIM_NAME = "modeling_tensorfact.py"
INSTALL = 'pip install "tensorfact[hf]"'
# A family's own class (LlamaForCausalLM.from_pretrained) ignores `model_type` and would fill every compressed layer
# with random numbers. It obeys this entry, the name of the weights file, and its error shows the text; the family
# configurations below drop it. The configuration and the tokenizer load without us.
GUARD_KEY = "transformers_weights"
OVERWRITTEN = ("auto_map", GUARD_KEY, MODEL_TYPE)
"""Keys of the source's `config.json`, beside `model_type`, that give way to ours; the recipe keeps their values."""
_GUARD = f"compressed by tensorfact: {INSTALL}, then import tensorfact.compress and load it with AutoModel"
# Processors name their class in their own file, and the auto module for them takes seconds to import.
_AUTO_MODULES = ("modeling_auto", "tokenization_auto")
_SHIM = f'''"""Lets transformers load this compressed checkpoint through tensorfact, which holds the code."""

try:
    from tensorfact.compress.huggingface import config_class
except ImportError as error:
    raise ImportError(
        "This checkpoint was compressed by tensorfact and needs the package `tensorfact` to load. "
        'Run `{INSTALL}`'
    ) from error

TensorfactConfig = config_class()
'''


def write_shim(directory: str | Path) -> Path:
    """Write the module that `config.json` refers to, for ``trust_remote_code=True``; return its path."""
    path = Path(directory) / SHIM_NAME
    path.write_text(_SHIM, encoding="utf-8")
    return path


def stored(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **config,
        "model_type": MODEL_TYPE,
        "auto_map": {"AutoConfig": f"{Path(SHIM_NAME).stem}.TensorfactConfig"},
        GUARD_KEY: _GUARD,
    }


def recipe_of(config: dict[str, Any]) -> dict[str, Any]:
    recipe = config.get(MODEL_TYPE)
    kinds = {"ranks": dict, "base_model_type": str, "base_config": dict}
    if not isinstance(recipe, dict) or not all(isinstance(recipe.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"config.json must hold a {MODEL_TYPE!r} entry with {', '.join(kinds)}, got {recipe!r}")
    if recipe.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"config.json has format_version {recipe.get('format_version')!r}, "
            f"this tensorfact reads {FORMAT_VERSION}; install the version that wrote the checkpoint"
        )
    return recipe


def method_of(recipe: dict[str, Any]) -> Method:
    """Return the method that reads the arrays of a recipe."""
    name = recipe.get("method", "lowrank")
    if name not in methods():
        raise ValueError(
            f"config.json names the method {name!r}, this tensorfact knows {', '.join(methods())}; "
            "install the version that wrote the checkpoint"
        )
    return reader(str(name), recipe)


@functools.cache
def family_config(base_model_type: str) -> Any:
    """Return the configuration class of one family, registered with every auto class that knows the family."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if base_model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"base_model_type must be a model type that transformers knows, got {base_model_type!r}: "
            "update transformers; a family that lives in remote code loads only after `tensorfact to-dense`"
        )
    base: Any = CONFIG_MAPPING[base_model_type]

    class FamilyConfig(base):  # type: ignore[misc]
        def __post_init__(self, **kwargs: Any) -> None:
            for key in ("model_type", GUARD_KEY):
                kwargs.pop(key, None)
            super().__post_init__(**kwargs)

        @classmethod
        def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
            config, rest = super().get_config_dict(*args, **kwargs)
            return {**config, "model_type": cls.model_type}, rest  # else transformers warns that they differ

        def to_dict(self) -> dict[str, Any]:
            return stored(super().to_dict())

        def to_diff_dict(self) -> dict[str, Any]:
            return stored(super().to_diff_dict())

        def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            write_shim(save_directory)
            super().save_pretrained(save_directory, *args, **kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _blank_config, (base_model_type,), self.__dict__

    # Not the base's name: an auto class that we did not register must refuse it, not find the dense class by that name.
    FamilyConfig.base_model_type = base_model_type
    FamilyConfig.__name__ = FamilyConfig.__qualname__ = f"Tensorfact{base.__name__}"
    _register_family(base, FamilyConfig)
    return FamilyConfig


def _register_family(base: Any, family: Any) -> None:
    from transformers.models.auto.auto_factory import _LazyAutoMapping

    for name in _AUTO_MODULES:
        module = importlib.import_module(f"transformers.models.auto.{name}")
        for mapping in [m for m in vars(module).values() if isinstance(m, _LazyAutoMapping)]:
            if base not in mapping:
                continue
            try:
                found: Any = mapping[base]
            except ImportError:  # a processor whose own packages (torchvision, ...) are missing
                continue
            if name == "modeling_auto":
                many = isinstance(found, (list, tuple))
                found = tuple(model_class(c, family) for c in found) if many else model_class(found, family)
            mapping.register(family, found, exist_ok=True)


@functools.cache
def model_class(base: Any, family: Any) -> type[Any]:
    """Return the subclass of one model class that builds itself with the recipe's factored layers."""

    class Model(base):  # type: ignore[misc]
        config_class = family

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            _swap(self)

        def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
            # transformers asks whether word embeddings are tied, and says nothing else is where they are not
            return {**super().get_expanded_tied_weights_keys(all_submodels), **vars(self).get("shared_arrays", {})}

        @staticmethod
        def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
            _refuse_random_factors(model, loading_info.missing_and_mismatched(), loading_info.unexpected_keys)
            return base._finalize_model_loading(model, load_config, loading_info)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _blank_model, (base, self.config_class.base_model_type), self.__dict__

    # The name goes to `architectures`, losses and pipelines go by it; the module's source tells which attentions exist.
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Model, attribute, getattr(base, attribute))
    return Model


def _blank_config(base_model_type: str) -> Any:
    return object.__new__(family_config(base_model_type))


def _blank_model(base: Any, base_model_type: str) -> Any:
    return object.__new__(model_class(base, family_config(base_model_type)))


def _swap(model: Any) -> None:
    """Replace the layers that the recipe in `model.config` names; device and dtype stay, the values are undefined."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    recipe = recipe_of(vars(model.config))
    method = method_of(recipe)
    ranks: dict[str, Rank] = {name: as_rank(rank) for name, rank in recipe["ranks"].items()}
    swappable = (nn.Linear, Conv1D, *method.module_classes())
    names = {n: m for n, m in module_names(model, ranks).items() if isinstance(model.get_submodule(m), swappable)}
    _check_names(model, ranks, names)
    method.install(model, names, ranks, recipe)
    tie_arrays(model, method, names, recipe)
    # Saved again, the model holds only these: a head that this class does not have is gone.
    model.config.tensorfact = {**recipe, "ranks": {name: recipe["ranks"][name] for name in names}}


def tie_arrays(model: Any, method: Method, names: dict[str, str], recipe: dict[str, Any]) -> None:
    """Let transformers know which arrays the layers share: saved once, and one parameter again after loading."""
    ties = {}
    for end, source in method.ties(recipe).items():
        places = [owner(method, key) for key in (end, source)]
        if all(place is not None and place[0] in names for place in places):
            target, origin = (f"{names[place[0]]}.{place[1]}" for place in places if place is not None)
            ties[target] = origin
    if ties:
        model.shared_arrays = ties
        model.all_tied_weights_keys = {**(getattr(model, "all_tied_weights_keys", None) or {}), **ties}
        # As expressions, the form in which transformers reads this attribute when it saves.
        patterns = {f"{re.escape(target)}$": f"{re.escape(origin)}$" for target, origin in ties.items()}
        model._tied_weights_keys = {**(type(model)._tied_weights_keys or {}), **patterns}


def architecture_class(names: Any) -> Any:
    """Return the model class of transformers that `architectures` names first, or None where it is something else.

    The text comes from a file that nobody vouches for, so no other attribute of transformers will do.
    """
    import transformers

    name = names[0] if isinstance(names, list) and names else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def loaded_keys(model: Any, keys: Iterable[str], state: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    """Map each key to the name it is loaded under, and to the pattern of a conversion that merges it with others.

    `state` holds the keys of the model, which say whether the base model's prefix is added or dropped.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    transforms: Any = get_model_conversion_mapping(model)
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings = [t for t in transforms if not isinstance(t, WeightConverter)]
    return {key: rename_source_key(key, renamings, converters, model.base_model_prefix, state) for key in keys}


def module_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Map checkpoint names to module names as `from_pretrained` maps keys: its renamings, the base model's prefix.

    Families whose modules were renamed keep the old names in their files (ViT: ``attention.attention.query`` is
    ``attention.q_proj`` in memory). Both are given without ``.weight``. A name whose tensor has no module of its own in
    `model`, because it is fused with others on loading or belongs to another class's head, is left out.
    """
    ours = tuple(kind for name in methods() for kind in create(name).module_classes())
    state = {
        f"{name}.weight": True
        for name, module in model.named_modules()
        if isinstance(module, ours) or module._parameters.get("weight") is not None
    }
    found = loaded_keys(model, [f"{name}.weight" for name in names], state)
    return {key.removesuffix(".weight"): to.removesuffix(".weight") for key, (to, _) in found.items() if to in state}


def _check_names(model: Any, ranks: dict[str, Rank], names: dict[str, str]) -> None:
    """Refuse a recipe that names what this model lacks, unless it is the head of another class of the family."""
    own = type(model).__name__ in (model.config.architectures or [])
    prefix = f"{model.base_model_prefix}."
    lost = [name for name in ranks if name not in names and (own or name.startswith(prefix))]
    if lost:
        raise ValueError(
            f"the recipe in config.json names layers that {type(model).__name__} lacks or holds fused: "
            f"{', '.join(sorted(lost)[:5])}"
        )
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    ends = {key.removesuffix(".weight") for key in (*tied, *tied.values())}
    for name, module_name in names.items():
        if module_name in ends:
            raise ValueError(f"the recipe in config.json gives a rank to {name}, whose weight is tied to another")


def _refuse_random_factors(model: Any, missing: set[str], unexpected: set[str]) -> None:
    """Raise where transformers would draw random numbers for factors, or for what the checkpoint stores as factors."""
    method = method_of(recipe_of(vars(model.config)))
    ours = method.module_classes()
    factors = {f"{n}.{key}" for n, m in model.named_modules() if isinstance(m, ours) for key in m.state_dict()}
    factors -= {end for end, source in vars(model).get("shared_arrays", {}).items() if source not in missing}
    stored = {found[0] for key in unexpected if (found := owner(method, key)) is not None}
    # transformers strips or adds the base model's prefix only where a key then fits
    prefix = f"{model.base_model_prefix}."
    stored |= {name.removeprefix(prefix) for name in stored} | {f"{prefix}{name}" for name in stored}
    lost = [key for key in missing if key in factors or key.removesuffix(".weight") in stored]
    if lost:
        raise ValueError(
            "the recipe in config.json does not fit the stored tensors, the model would get random weights for "
            f"{len(lost)} of them: {', '.join(sorted(lost)[:5])}"
        )
