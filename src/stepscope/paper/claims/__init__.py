"""What the records say of the paper's twelve claims."""

from stepscope.paper.claims.claims import claims_grid, claims_json, departures_grid, judge, parts_grid
from stepscope.paper.claims.losses import conclusion, finals_of, pairs_of

__all__ = [
    "claims_grid", "claims_json", "conclusion", "departures_grid", "finals_of", "judge", "pairs_of", "parts_grid",
]  # fmt: skip
