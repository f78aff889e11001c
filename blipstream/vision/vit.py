# SPDX-License-Identifier: Apache-2.0
"""BLIP's vision transformer (ViT), from uint8 pixels to image_embeds.

B images, N = 1 + patches tokens, width E.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from blipstream.config import VisionConfig


class TransformerLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, E] -> [B, N, E]."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, head size]
        x = x + self.projection(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.mlp_norm(x))))
        return x + hidden


class VisionTransformer(nn.Module):
    """The whole model. It rescales and normalizes pixels itself, in f32."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        width, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
        # pixels are normalized to pixels * scale + shift; both are loaded with the weights
        self.register_buffer("scale", torch.empty(3, 1, 1))
        self.register_buffer("shift", torch.empty(3, 1, 1))
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.class_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + patches, width))
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [B, H, W, 3] -> image_embeds [B, N, E] in the weights' dtype, the class token first."""
        assert pixels.shape[1:] == (self.image_size, self.image_size, 3)
        # cast first: TensorRT knows no other operation on uint8
        pixel_values = pixels.float().permute(0, 3, 1, 2) * self.scale + self.shift
        x = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], -1, -1), x], dim=1) + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        image_embeds: Tensor = self.norm(x)
        return image_embeds
