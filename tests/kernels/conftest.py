"""Kernels run in Triton's interpreter where there is no GPU; the variable is read when they are imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
