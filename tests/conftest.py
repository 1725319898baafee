"""What all tests share: threads and the table of small models that have the hard parts."""

import pytest
import torch

# Small models lose more to threads than they gain, and a result must not depend on their number.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Each test starts from the same random state, whatever ran before."""
    torch.manual_seed(0)
