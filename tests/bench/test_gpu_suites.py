"""The GPU suites run where there is no GPU: at toy sizes, in Triton's interpreter, without a figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benches.gpu.run import first_difference

ROOT = Path(__file__).resolve().parents[2]
FIGURES = (
    "p20",
    "p50",
    "p80",
    "value",
    "fraction",
    "roofline_us",
    "reached",
    "copy_gbs",
    "over_airi",
    "tok_s",
)


def run(*arguments: str, gpu: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(
        [sys.executable, "-m", "benches.gpu.run", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=280,
        check=False,
    )


def suite(name: str, *arguments: str) -> list[dict[str, object]]:
    """The rows of a toy run, in which every case was right."""
    done = run("--suite", name, "--device", "cpu", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert "no speeds: not a GPU" in done.stderr
    assert " 0 failures" in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_without_a_gpu_one_line_says_so() -> None:
    done = run("--suite", "attention")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "torch sees no GPU here; --device cpu runs the suite at toy sizes, without speeds"
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "speed"), "invalid choice: 'speed'"),
        (("--suite", "check", "--seconds", "-1"), "--seconds is -1, accepted is more than 0"),
        (("--suite", "peers", "--vllm-kernels", "nowhere"), "--vllm-kernels is nowhere, which is no folder"),
    ],
)
def test_a_wrong_flag_is_named(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_a_toy_run_checks_kernels_and_shows_no_figure(tmp_path: Path) -> None:
    rows = suite("check", "--only", "decode float32 D32", "fast mode", "--write", str(tmp_path / "rows"))
    assert {row["case"] for row in rows} == {"decode float32 D32", "attention: fast mode"}
    assert all(row["error"] <= row["tolerance"] for row in rows)  # type: ignore[operator]
    assert {"gpu", "torch", "triton", "airi", "commit", "date", "command"} <= rows[0].keys()
    assert not (tmp_path / "rows").exists()


def test_a_run_without_time_names_what_it_left_out() -> None:
    done = run("--suite", "check", "--device", "cpu", "--only", "float32 D32", "--seconds", "0.001")
    assert done.returncode == 0
    assert "left out, as the time was over: decode float32 D32, prefill float32 D32" in done.stdout


def test_another_airi_than_this_folders_is_noticed(tmp_path: Path) -> None:
    root, installed = tmp_path / "root", tmp_path / "site-packages" / "airi"
    for folder in (root / "python" / "airi", root / "kernels", installed / "kernels"):
        folder.mkdir(parents=True)
    for file in (root / "python" / "airi" / "engine.py", installed / "engine.py"):
        file.write_text("a = 1")
    for file in (root / "kernels" / "decode.py", installed / "kernels" / "decode.py"):
        file.write_text("b = 1")
    assert first_difference(root, installed) is None
    (installed / "kernels" / "decode.py").write_text("b = 2")
    assert first_difference(root, installed) == Path("kernels/decode.py")
    (installed / "engine.py").unlink()
    assert first_difference(root, installed) == Path("engine.py")


@pytest.mark.slow
def test_every_check_is_right_in_the_interpreter() -> None:
    suite("check")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "engine"])
def test_timed_suites_run_and_show_no_figure(name: str) -> None:
    rows = suite(name, *["--tune"] * (name == "attention"))
    assert rows
    for row in rows:
        assert not [key for key in FIGURES if key in row]


STUB = '''
import torch

import vllm.envs as envs
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.triton_utils import tl, triton
from vllm.v1.attention.ops.helpers import softmax
from vllm.v1.kv_cache_interface import KVQuantMode

logger = init_logger(__name__)
assert not envs.VLLM_BATCH_INVARIANT and KVQuantMode.NONE == 0
assert torch.finfo(current_platform.fp8_dtype()).max == 448 and not current_platform.is_xpu()


def unified_attention(q, k, v, out, cu_seqlens_q, seqused_k, softmax_scale, causal, block_table, softcap=0):
    """Row by row; without the arguments that other versions have."""
    starts, size = cu_seqlens_q.tolist(), k.shape[1]
    for row, keys in enumerate(seqused_k.tolist()):
        begin, end = starts[row], starts[row + 1]
        for i in range(begin, end):
            seen = keys - (end - 1 - i)
            tokens = [(int(block_table[row, t // size]), t % size) for t in range(seen)]
            for head in range(q.shape[1]):
                kv = head // (q.shape[1] // k.shape[2])
                kk = torch.stack([k[b, s, kv] for b, s in tokens])
                vv = torch.stack([v[b, s, kv] for b, s in tokens])
                out[i, head] = softmax(kk @ q[i, head] * softmax_scale) @ vv * SCALE
'''


def stub_of_vllm(folder: Path, *, scale: float = 1.0) -> Path:
    """A folder laid out as vLLM's, whose own packages must not be imported."""
    ops = folder / "vllm" / "v1" / "attention" / "ops"
    ops.mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("raise ImportError('all of vLLM')\n")
    (ops / "helpers.py").write_text("import torch\n\n\ndef softmax(x):\n    return torch.softmax(x, 0)\n")
    (ops / "triton_unified_attention.py").write_text(f"SCALE = {scale}\n{STUB}")
    return folder


@pytest.mark.slow
def test_vllms_kernels_are_taken_from_a_folder_and_compared(tmp_path: Path) -> None:
    rows = suite("peers", "--vllm-kernels", str(stub_of_vllm(tmp_path)))
    for case in ("decode toy", "prefill toy"):
        found = [row["variant"] for row in rows if row["case"] == case]
        assert found[:2] == ["AIRI", "vLLM's Triton"]
        assert "FlexAttention" in found
    absent = " ".join(str(row.get("absent", "")) for row in rows)
    assert "FlashInfer: flashinfer is not installed" in absent


@pytest.mark.slow
def test_a_peer_that_computes_something_else_gets_no_speed(tmp_path: Path) -> None:
    rows = suite("peers", "--only", "decode", "--vllm-kernels", str(stub_of_vllm(tmp_path, scale=1.5)))
    assert "vLLM's Triton" not in [row["variant"] for row in rows]
    absent = " ".join(str(row.get("absent", "")) for row in rows)
    assert "vLLM's Triton: wrong by 0.5, no speed" in absent


def test_a_folder_without_the_kernels_is_named(tmp_path: Path) -> None:
    from benches.gpu import vllm_kernels

    with pytest.raises(FileNotFoundError, match="holds none of vllm/v1/attention/ops"):
        vllm_kernels.find(tmp_path)
    folder = stub_of_vllm(tmp_path)
    assert vllm_kernels.find(folder) == vllm_kernels.find(folder / "vllm")


def test_rows_are_split_only_where_vllm_splits_them() -> None:
    from benches.gpu import vllm_kernels

    assert vllm_kernels.segments_for(17, 8, 32, 128, torch.device("cpu")) == {}
    few = vllm_kernels.segments_for(4, 8, 32, 80, torch.device("cpu"))
    assert few["softmax_segm_output"].shape == (16, 32, 16, 128)
