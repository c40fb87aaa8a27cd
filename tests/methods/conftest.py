from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture
def alone() -> Any:
    """What `single` needs of a process group, without one."""
    ranks = SimpleNamespace(global_rank=0, world_size=1, is_main=True)
    return SimpleNamespace(
        device=torch.device("cpu"), ranks=ranks, table=lambda *row: torch.tensor([row]), from_main=lambda value: value
    )
