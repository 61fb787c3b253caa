"""The vision transformer of vit_cifar10.safetensors as a model class that transformers loads: post-norm, ReLU.

No class of transformers has these equations (its vision models normalise before attention and MLP), so this one is
registered with the auto classes, as any model that is not part of the library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class PostNormConfig(PreTrainedConfig):
    """Sizes; all are those of the file."""

    model_type = "post_norm_vit"
    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    patch_size: int = 4
    image_size: int = 32
    num_labels: int = 10


class Block(nn.Module):
    """Attention, then MLP, each added to its input and normalised after."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention = nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "out": nn.Linear(d, d)})
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.fc1, self.fc2 = nn.Linear(d, config.intermediate_size), nn.Linear(config.intermediate_size, d)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, tokens, width = hidden.shape
        parts = self.attention["qkv"](hidden).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        hidden = self.norm1(hidden + self.attention["out"](seen))
        return self.norm2(hidden + self.fc2(self.fc1(hidden).relu()))


class PostNormViT(PreTrainedModel):
    """Logits of ten classes from images (N, 3, 32, 32)."""

    config_class = PostNormConfig
    main_input_name = "pixel_values"
    base_model_prefix = "vit"
    _tied_weights_keys: ClassVar[dict[str, str]] = {}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        d = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, (config.image_size // config.patch_size) ** 2 + 1, d))
        self.patches = nn.Conv2d(3, d, config.patch_size, config.patch_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(d), "linear": nn.Linear(d, config.num_labels)})
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            hidden = block(hidden)
        return ImageClassifierOutput(logits=self.head["linear"](self.head["norm"](hidden[:, 0])))


AutoConfig.register(PostNormConfig.model_type, PostNormConfig, exist_ok=True)
AutoModel.register(PostNormConfig, PostNormViT, exist_ok=True)

_RENAMED = {
    "patch_embed.proj": "patches",
    "transformer.layers": "blocks",
    "self_attn.in_proj_weight": "attention.qkv.weight",
    "self_attn.in_proj_bias": "attention.qkv.bias",
    "self_attn.out_proj": "attention.out",
    "linear1": "fc1",
    "linear2": "fc2",
    "mlp_head.0": "head.norm",
    "mlp_head.1": "head.linear",
}


def convert(file: Path, folder: Path) -> Path:
    """Write the model as a checkpoint of float32 safetensors."""
    from safetensors.torch import load_file

    state = {}
    for name, values in load_file(file).items():
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        state[name] = values
    model = PostNormViT(PostNormConfig())
    model.load_state_dict(state)
    model.save_pretrained(folder)
    return folder


def scaled(images: Tensor) -> Tensor:
    """Images of 0 to 1 as the model takes them."""
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
