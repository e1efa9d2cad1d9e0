"""Candidates with a fault each, made of the built-in model: what a rollout must not let through.

`identical`: the same files again; `noisy`: normal noise on every matrix, as much as rounding it to bf16 adds; `fp8`: as
much as rounding it to fp8 (e4m3) adds. These must pass. `finetune`: a little more of its own training, on dialogues
that it has not seen. `template`: the chat template of another family. `noise`: 8 times the noise of `fp8`.
`tokenizer`: ids of all tokens but the special ones are off by one, as where a vocabulary has lost a line. `rope`: half
of the rotary dimensions are cut off.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from airi import builtin

__all__ = ["FAULTS", "write_candidate"]

_FP8_ERROR = 2**-3 / 12**0.5 / (7 / 3) ** 0.5
"""Of a value in [1, 2) that is rounded to 3 bits behind the point, relative to it; the root of the mean square."""
_BF16 = 2**-4
"""The error of bf16, which has 4 bits more behind the point, relative to that."""
_SEED = 11
"""Of dialogues that the built-in model was not trained on."""
_OTHER_TEMPLATE = (
    "{%- for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] }}\n{% endif %}{% endfor %}"
)


def write_candidate(fault: str, folder: Path) -> Path:
    """The folder of a candidate of this name below `folder`; written when it is first asked for."""
    made = folder / fault
    if not made.exists():
        unfinished = folder / f".{fault}"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(builtin.path(), unfinished)
        if fault == "fp8":
            _noise(unfinished, 1.0)
        elif fault == "noisy":
            _noise(unfinished, _BF16)
        elif fault == "finetune":
            _finetune(unfinished)
        elif fault != "identical":
            FAULTS[fault](unfinished)
        unfinished.rename(made)
    return made


def _finetune(folder: Path, steps: int = 40, rate: float = 1e-4) -> None:
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from torch.nn import functional

    from tools.demo_model.model import Decoder, ModelConfig
    from tools.demo_model.packing import batches

    torch.manual_seed(_SEED)
    model = Decoder(ModelConfig())
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): value.float() for name, value in weights.items()})
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for batch in islice(batches(_SEED, tokenizer, 2048), steps):
        hidden = model(batch.tokens, batch.positions, batch.segments)
        loss = functional.cross_entropy(model.logits(hidden[batch.picked]), batch.targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    config = (folder / "config.json").read_text()
    model.save(folder)
    (folder / "config.json").write_text(config)


def _template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(_OTHER_TEMPLATE)


def _noise(folder: Path, times: float = 8.0) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[:8], "little")
    draw = np.random.default_rng(1)
    for name, tensor in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__" or len(tensor["shape"]) != 2:
            continue
        start, end = (8 + size + at for at in tensor["data_offsets"])
        bits = np.frombuffer(data[start:end], np.uint16).astype(np.uint32)
        weights = (bits << 16).view(np.float32).reshape(tensor["shape"])
        noisy = weights * (1 + times * _FP8_ERROR * draw.standard_normal(weights.shape, np.float32))
        rounded = (noisy.astype(np.float32).view(np.uint32) + 0x8000) >> 16
        data[start:end] = rounded.astype(np.uint16).tobytes()
    file.write_bytes(data)


def _tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    document: dict[str, Any] = json.loads(file.read_text())
    special = {token["id"] for token in document["added_tokens"]}
    vocab: dict[str, int] = document["model"]["vocab"]
    ids = sorted(set(vocab.values()) - special)
    after = dict(zip(ids, ids[1:] + ids[:1], strict=True))
    document["model"]["vocab"] = {token: after.get(at, at) for token, at in vocab.items()}
    file.write_text(json.dumps(document, ensure_ascii=False))


def _rope(folder: Path) -> None:
    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text())
    config["partial_rotary_factor"] = 0.5
    file.write_text(json.dumps(config))


FAULTS: dict[str, Callable[[Path], None]] = {
    "template": _template,
    "noise": _noise,
    "tokenizer": _tokenizer,
    "rope": _rope,
}
"""By name, what puts a fault into a candidate's folder."""
