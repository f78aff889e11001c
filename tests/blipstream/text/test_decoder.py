# SPDX-License-Identifier: Apache-2.0
"""Packed weights make a step faster and do not change its results."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from blipstream.config import TextConfig
from blipstream.dtypes import cpu_has_bf16
from blipstream.text.decoder import PackedLinear, Segment, TextDecoder, can_pack
from tests.conftest import ROOT
from tests.reference import relative_error

CONFIG = TextConfig(
    vocab_size=101,
    hidden_size=48,
    encoder_hidden_size=40,
    intermediate_size=80,
    num_layers=2,
    num_heads=3,
    max_positions=16,
    layer_norm_eps=1e-12,
    start_token_id=1,
    end_token_id=2,
)
DTYPES = [
    pytest.param(torch.float32, 1e-5, id="f32"),
    pytest.param(
        torch.bfloat16,
        1e-2,
        id="bf16",
        marks=pytest.mark.skipif(not cpu_has_bf16(), reason="this processor does not multiply bf16"),
    ),
]


def random_decoder(dtype: torch.dtype) -> TextDecoder:
    torch.manual_seed(0)
    decoder = TextDecoder(CONFIG)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return decoder.to(dtype).eval().requires_grad_(False)


def forward(decoder: TextDecoder, images: int, rows_per_image: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """The logits, and the keys and values that were written."""
    rows, dtype = images * rows_per_image, decoder.head_bias.dtype
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(CONFIG.vocab_size, (rows, tokens), generator=generator)
    x = torch.randn(images, 7, CONFIG.encoder_hidden_size, generator=generator).to(dtype)
    shape = (CONFIG.num_layers, rows, CONFIG.num_heads, 8, CONFIG.hidden_size // CONFIG.num_heads)
    keys, values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    past = torch.zeros(rows, dtype=torch.int64)
    (logits,) = decoder([Segment(ids, past, tokens, x, [(images, rows_per_image)], keys, values)])
    return logits, keys, values


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("images", "rows_per_image", "tokens"), [(1, 1, 1), (3, 1, 1), (2, 3, 1), (3, 1, 5)])
def test_packed_results(dtype: torch.dtype, tolerance: float, images: int, rows_per_image: int, tokens: int) -> None:
    plain = forward(random_decoder(dtype), images, rows_per_image, tokens)
    packed = forward(random_decoder(dtype).pack(), images, rows_per_image, tokens)
    for ours, theirs in zip(packed, plain, strict=True):
        assert relative_error(ours, theirs) < tolerance


def test_every_matrix_is_packed() -> None:
    """The operators are private: this fails if a new PyTorch lacks them, since steps would be slower."""
    decoder = random_decoder(torch.float32).pack()
    assert not [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    assert sum(isinstance(module, PackedLinear) for module in decoder.modules()) == 6 * CONFIG.num_layers + 2


def test_other_devices_cannot_pack() -> None:
    assert not can_pack(torch.empty(2, 2, device="meta"))


def test_pytorch_without_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoOperators:
        """Takes the place of torch.ops.mkldnn."""

    expected = forward(random_decoder(torch.float32), 2, 1, 3)[0]
    monkeypatch.setattr(torch.ops, "mkldnn", NoOperators())
    decoder = random_decoder(torch.float32).pack()
    assert decoder.packed_head is None
    assert torch.equal(forward(decoder, 2, 1, 3)[0], expected)


def test_loading_imports_no_compiler(f32_artifacts: Path) -> None:
    """Importing it would double the time that a server takes to start."""
    program = """
import sys
from pathlib import Path
from blipstream.decoding import load_engine
load_engine(Path(sys.argv[1]), "cpu").warm_up()
sys.exit("torch._dynamo" in sys.modules)
"""
    command: list[str | Path] = [sys.executable, "-c", program, f32_artifacts / "decoder/1/artifact"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
