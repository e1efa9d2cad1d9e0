"""Weights in 8 bits: values of fp8 or int8 and one scale per row, multiplied back where they are used.

Projections are quantised by torchao, and multiplied by it where there are many rows. Experts, which it has no products
for, take the same scheme: row x is stored as x / s with s = max|x| / 448 (fp8) or max|x| / 127 (int8).
"""

from __future__ import annotations

from typing import Any

from airi.engine.backends.cuda.device import Device
from airi.engine.backends.cuda.tensors import Weight
from airi.errors import ConfigError

__all__ = ["Quantiser"]


class Quantiser:
    """Quantises weights where it was asked for; raises `ConfigError` at once where that is impossible."""

    def __init__(self, quantization: str | None, device: Device) -> None:
        self._config = None if quantization is None else _torchao_config(quantization, device)
        self._is_fp8 = quantization == "fp8"

    def projection(self, weight: Weight) -> Weight:
        """A projection [n, k]; the plain one is given back if nothing was asked for."""
        if self._config is None:
            return weight
        import torch
        from torchao.quantization import quantize_

        module = torch.nn.Module()
        module.linear = torch.nn.Linear(*reversed(weight.tensor.shape), bias=False, device="meta")
        module.linear.weight = torch.nn.Parameter(weight.tensor, requires_grad=False)
        quantize_(module, self._config)
        return Weight(module.linear.weight.data)

    def experts(self, weight: Weight) -> tuple[Weight, Weight | None]:
        """Stacked weights [experts, n, k] and their scales [experts, n] float32, None if nothing was asked for."""
        if self._config is None:
            return weight, None
        import torch

        from airi.kernels import reference

        dtype = torch.float8_e4m3fn if self._is_fp8 else torch.int8
        plain = weight.tensor
        values = torch.empty(plain.shape, dtype=dtype, device=plain.device)
        scales = torch.empty(plain.shape[:-1], dtype=torch.float32, device=plain.device)
        for index, expert in enumerate(plain):  # one at a time: the products are float32
            values[index], scales[index] = reference.quantise(expert, dtype)
        return Weight(values), Weight(scales)


def _torchao_config(quantization: str, device: Device) -> Any:
    from airi.kernels.arch import arch_of

    field = "quantization"
    if quantization == "fp8" and not arch_of(device.torch_device).has_fp8:
        raise ConfigError(
            f"quantization is 'fp8'; {device.description} has no fp8, accepted there: int8", field=field
        )
    try:
        from torchao import quantization as torchao
    except ImportError as error:
        raise ConfigError(
            f"quantization is {quantization!r}; it needs torchao: pip install 'airi[torchao]' ({error})",
            field=field,
        ) from None
    fp8 = quantization == "fp8"
    return torchao.Float8WeightOnlyConfig() if fp8 else torchao.Int8WeightOnlyConfig()
