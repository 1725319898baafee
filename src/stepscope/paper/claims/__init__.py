"""What the records say of the paper's twelve claims."""

from stepscope.paper.claims.beside import BESIDE, read_others
from stepscope.paper.claims.claims import ALONG_TRAJECTORIES, judge
from stepscope.paper.claims.factors import factor_tables
from stepscope.paper.claims.ladder import Rung, climbed, ladder_table
from stepscope.paper.claims.learned import learned
from stepscope.paper.claims.losses import conclusion, finals_of, pairs_of
from stepscope.paper.claims.stored import claims_json
from stepscope.paper.claims.tables import claims_table, departures_table, later_rules_table, parts_table

__all__ = [
    "ALONG_TRAJECTORIES",
    "BESIDE",
    "Rung",
    "claims_json",
    "claims_table",
    "climbed",
    "conclusion",
    "departures_table",
    "factor_tables",
    "finals_of",
    "judge",
    "ladder_table",
    "later_rules_table",
    "learned",
    "pairs_of",
    "parts_table",
    "read_others",
]  # fmt: skip
