"""``torch.compile`` on and off: same results, and how much faster; compiling alone takes half a minute."""

import time
from typing import Any

import torch

from benchmarks.gpu.correctness import relative_error
from benchmarks.gpu.data import network
from benchmarks.gpu.measure import Results, Setup, repeat

__all__ = ["run"]


def run(setup: Setup, results: Results) -> None:
    """Compare the compiled network with the network, in 16 bits as the engine computes."""
    if not setup.on_gpu:
        results.skip("compiled network", "inference.compile is for CUDA")
        return
    plain = network(setup).to(device=setup.device, dtype=torch.float16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(8, 3, 640, 640, device=setup.device, dtype=torch.float16)
    x = x.contiguous(memory_format=torch.channels_last)
    compiled: Any = torch.compile(plain, dynamic=False)
    with torch.inference_mode():
        began = time.perf_counter()
        out = compiled(x)
        setup.synchronize()
        results.add("compiling", time.perf_counter() - began, "s")
        error = relative_error(out, plain(x))
        results.add("compiled network", error, "error", "against the network", tolerance=1e-2, passed=error <= 1e-2)
        rates = []
        for one in (plain, compiled):
            seconds = repeat(lambda one=one: [one(x) for _ in range(5)], setup, seconds=1.0)  # type: ignore[misc]
            rates.append([5 * x.shape[0] * 0.4096 / it for it in seconds])
    results.add("network, batch of 8 of 640²", rates[0], "MP/s")
    results.add("compiled network, batch of 8 of 640²", rates[1], "MP/s")
