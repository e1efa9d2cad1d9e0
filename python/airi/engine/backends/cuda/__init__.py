"""Models on a device with memory and streams of its own: NVIDIA's through CUDA, AMD's through ROCm.

`interface` says what runner and model agree on, `device` hides the two kinds of device (a real one, and the host's
memory in its place for tests), `team` and `worker` are the processes of models on several devices. torch is
imported lazily, Triton where kernels run.
"""
