"""What records of a training say about it: findings, each with its evidence, and how often it was right."""

from stepscope.judging.finding import Finding, Findings
from stepscope.judging.findings import findings
from stepscope.judging.rate import RateVerdict, Rule, judge_rate
from stepscope.judging.trust import TrustRatio, trust_ratio

__all__ = ["Finding", "Findings", "RateVerdict", "Rule", "TrustRatio", "findings", "judge_rate", "trust_ratio"]
