"""Damaged checkpoints and configs: one clear line each, never a traceback from below."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi.engine.backends import LoadOptions, get_backend
from airi.engine.checkpoint import Checkpoint, RawTensor
from airi.engine.families import FAMILIES
from airi.errors import AiriError, CheckpointError, ConfigError
from tests.engine.tiny_models import make_checkpoint

Checkpoints = Callable[[str], Path]


def load_error(folder: Path, **options: Any) -> AiriError:
    """The error of loading `folder`: one line."""
    with pytest.raises(AiriError) as caught:
        get_backend("cpu").load_model(folder, LoadOptions(**options))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def folder(checkpoint: Checkpoints, tmp_path: Path) -> Path:
    """A private copy of the tiny Llama."""
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "copy"))


def edit_config(folder: Path, **changes: Any) -> None:
    """Sets fields of config.json; a value of ... removes the field."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the JSON header of a safetensors file."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + raw[8 + length :])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert str(load_error(tmp_path / "absent")) == f"model folder {tmp_path / 'absent'} does not exist"


def test_a_missing_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert str(load_error(folder)) == f"{folder / 'config.json'} is missing"


@pytest.mark.parametrize(("text", "reason"), [("{", "is not valid JSON"), ("[1]", "holds a JSON list")])
def test_a_config_that_is_not_an_object_is_refused(text: str, reason: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    assert reason in str(load_error(folder))


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert str(load_error(folder)).endswith("has neither model.safetensors nor model.safetensors.index.json")


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_truncated_weights_are_refused(keep: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = int(len(raw) * keep) if isinstance(keep, float) else keep % len(raw) if keep < 0 else int(keep)
    path.write_bytes(raw[:size])
    error = load_error(folder)
    assert isinstance(error, CheckpointError)
    assert f"{path} is truncated" in str(error)


@pytest.mark.parametrize("raw", [struct.pack("<Q", 4) + b"[{}]", struct.pack("<Q", 3) + b"{]}" + bytes(9)])
def test_a_file_of_another_format_is_refused(raw: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(raw)
    assert "is not a safetensors file" in str(load_error(folder))


def test_header_entries_that_contradict_themselves_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    edit_header(path, lambda header: header["model.norm.weight"].update(shape=[63]))
    assert re.search(
        r"is damaged: tensor model\.norm\.weight F32 \[63\] spans 256 bytes", str(load_error(folder))
    )
    edit_header(path, lambda header: header["model.norm.weight"].pop("shape"))
    assert "is damaged: the header's entry of model.norm.weight cannot be read" in str(load_error(folder))


def test_a_listed_shard_that_is_absent_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path, max_shard_size="100KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert str(load_error(folder)) == f"{shard} is missing; model.safetensors.index.json lists it"


@pytest.mark.parametrize("weight_map", [None, {}, {"a": "../b.safetensors"}, {"a": "b.bin"}])
def test_an_index_without_usable_files_is_refused(weight_map: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "weight_map" in str(load_error(folder))


def test_a_missing_tensor_is_named_with_its_shape(folder: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    edit_header(folder / "model.safetensors", lambda header: header.pop(name))
    assert str(load_error(folder)) == f"{folder}: tensor {name} is missing, expected shape [96, 64]"


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    edit_config(folder, intermediate_size=128)
    assert re.search(
        r"tensor model\.layers\.0\.mlp\.\w+_proj\.weight has shape \[\d+, \d+\], expected \[\d+, \d+\]",
        str(load_error(folder)),
    )


def test_a_tensor_of_an_unread_dtype_is_named(folder: Path) -> None:
    name = "model.norm.weight"
    edit_header(folder / "model.safetensors", lambda header: header[name].update(dtype="I32"))
    assert str(load_error(folder)).endswith(f"tensor {name} is stored as I32; accepted: F32, BF16, F16")


def test_an_unknown_architecture_lists_the_supported_ones(folder: Path) -> None:
    edit_config(folder, architectures=["MambaForCausalLM"])
    line = str(load_error(folder))
    assert "architecture MambaForCausalLM is not supported; supported: " in line
    assert all(family.architecture in line for family in FAMILIES.values())
    edit_config(folder, architectures=..., model_type="mamba")
    assert "architecture mamba is not supported" in str(load_error(folder))
    edit_config(folder, model_type=...)
    assert str(load_error(folder)).endswith("field architectures is missing")


@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "rms_norm_eps",
        "vocab_size",
    ],
)
def test_a_config_without_a_field_names_it(field: str, folder: Path) -> None:
    edit_config(folder, **{field: ...})
    assert str(load_error(folder)) == f"{folder / 'config.json'}: field {field} is missing"


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("hidden_size", "64", "an integer of at least 1"),
        ("num_hidden_layers", 0, "an integer of at least 1"),
        ("num_key_value_heads", 3, "a divisor of num_attention_heads 4"),
        ("rms_norm_eps", -1.0, "a number above 0"),
        ("tie_word_embeddings", "no", "true or false"),
        ("hidden_act", "relu", "silu, swish, gelu_pytorch_tanh, gelu_tanh"),
        ("dtype", "float8_e4m3fn", "float32, bfloat16, float16"),
        ("eos_token_id", "</s>", "an integer or a list of integers"),
        ("architectures", "LlamaForCausalLM", "a list of strings"),
        ("rope_parameters", [1], "an object"),
        ("head_dim", 12, "multiples of 8 up to 256"),
        ("quantization_config", {"quant_method": "gptq"}, "weights in float32, bfloat16, float16"),
    ],
)
def test_a_field_of_another_value_names_value_and_accepted(
    field: str, value: Any, accepted: str, folder: Path
) -> None:
    edit_config(folder, **{field: value})
    error = load_error(folder)
    assert isinstance(error, ConfigError)
    assert field in str(error)
    assert str(error).endswith(f"accepted: {accepted}")


def test_a_wrong_option_names_the_accepted_ones() -> None:
    with pytest.raises(ConfigError, match="dtype is 'int4'; accepted: auto, float32, bfloat16, float16"):
        LoadOptions(dtype="int4")
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'fp4'; accepted: auto, fp8, int8"):
        LoadOptions(kv_cache_dtype="fp4")
    with pytest.raises(ConfigError, match="quantization is 'awq'; accepted: fp8, int8"):
        LoadOptions(quantization="awq")
    with pytest.raises(ConfigError, match="max_model_len is 0; it must be at least 1"):
        LoadOptions(max_model_len=0)
    with pytest.raises(ConfigError, match="backend is 'tpu'; accepted: cpu, reference"):
        get_backend("tpu")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8'; on CPUs it must be 'auto'"),
        ({"quantization": "int8"}, "quantization is 'int8'; on CPUs it must be None"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size is 2; on CPUs it must be 1"),
    ],
)
def test_options_of_devices_are_refused_on_cpus(
    backend: str, options: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        get_backend(backend).load_model(folder, LoadOptions(**options))
    assert str(error.value) == message


def test_a_context_longer_than_the_model_is_refused(folder: Path) -> None:
    assert (
        str(load_error(folder, max_model_len=513)) == f"max_model_len is 513; {folder} supports at most 512"
    )


def test_loading_reports_every_byte_once(folder: Path) -> None:
    for backend in ("cpu", "reference"):
        seen: list[tuple[int, int]] = []
        report = LoadOptions(progress=lambda done, total, seen=seen: seen.append((done, total)))  # type: ignore[misc]
        get_backend(backend).load_model(folder, report)
        done = [value for value, _ in seen]
        assert done == sorted(set(done))
        assert len({total for _, total in seen}) == 1
        assert seen[-1][0] == seen[-1][1]
        assert len(seen) >= 5


def test_data_may_start_at_any_byte(folder: Path, checkpoint: Checkpoints) -> None:
    path = folder / "model.safetensors"
    edit_header(path, lambda header: header["__metadata__"].update(odd=""))
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    if length % 2 == 0:
        edit_header(path, lambda header: header["__metadata__"].update(odd="x"))
    shifted, plain = Checkpoint(folder), Checkpoint(checkpoint("llama"))
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(shifted.tensor(name, (64, 64)).data, plain.tensor(name, (64, 64)).data)
    assert shifted.tensor(name, (64, 64)).data.ctypes.data % 4 == 0


def test_the_cpu_backend_loads_without_torch_or_transformers(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from airi.engine.backends import LoadOptions, get_backend\n"
        "get_backend('cpu').load_model(Path(sys.argv[1]), LoadOptions())\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", program, str(folder)], timeout=60, check=False).returncode == 0
    )


def test_info_describes_the_model(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9], "top_k": 7}))
    info = get_backend("cpu").load_model(folder, LoadOptions(max_model_len=100)).info
    assert (info.family, info.dtype, info.vocab_size, info.max_model_len) == ("llama", "float32", 323, 100)
    assert info.eos_token_ids == (5, 9)
    assert info.generation_config["top_k"] == 7
    assert info.kv_bytes_per_token == 4 * 2 * 2 * 16 * 4
    assert info.bytes_per_block(3) == 4096
    assert info.bytes_per_block(5) == 8192


def test_ends_of_sequence_outside_the_vocabulary_are_none(folder: Path) -> None:
    size = get_backend("cpu").load_model(folder, LoadOptions()).info.vocab_size
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [-1, 5, size]}))
    assert get_backend("cpu").load_model(folder, LoadOptions()).info.eos_token_ids == (5,)


def test_float32_rounds_to_bfloat16_as_torch_does() -> None:
    import torch

    rng = np.random.default_rng(3)
    bits = rng.integers(0, 1 << 32, 20000, dtype=np.uint64).astype(np.uint32)
    values = np.concatenate([bits.view(np.float32), np.array([0.0, -0.0, np.inf, -np.inf], np.float32)])
    values = values[~np.isnan(values)]
    found = RawTensor("t", "F32", values).bfloat16()
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(found, expected)
    nan = RawTensor("t", "F32", np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)).bfloat16()
    assert np.isnan((nan.astype(np.uint32) << 16).view(np.float32)).all()
