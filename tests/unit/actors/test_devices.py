"""TF32 on GPUs, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from actors.devices import prepare
from branchgrpo.config.roles import Learner, Role, Rollout


@pytest.mark.parametrize("kind", [Learner, Rollout])
def test_float32_products_are_tf32_on_gpus_alone(kind: type[Role]) -> None:
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        torch.set_float32_matmul_precision("highest")
        prepare(kind(threads=threads))
        assert torch.get_float32_matmul_precision() == "highest"
        prepare(kind(threads=threads, gpus=0.5))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)
