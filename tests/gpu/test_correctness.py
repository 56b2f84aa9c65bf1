"""Every check of ``python -m benchmarks.gpu``, on the GPU, against float64 on the CPU."""

import pytest
import torch

from benchmarks.gpu.correctness import CHECKS


@pytest.mark.parametrize("name", CHECKS)
def test_gpu_computes_what_the_cpu_computes_in_float64(cuda: torch.device, name: str) -> None:
    found = list(CHECKS[name](cuda))
    assert found
    wrong = [
        f"{check.name}: {check.error:.2e} > {check.tolerance:.2e} {check.note}" for check in found if not check.passed
    ]
    assert not wrong, "\n".join(wrong)
