"""What records of a training say about it: findings, each with its evidence, and how often it was right."""

from stepscope.judging.confidence import PROBES, Calibrated, bin_of
from stepscope.judging.finding import Finding, Findings
from stepscope.judging.findings import findings
from stepscope.judging.outlook import Outlook, outlook
from stepscope.judging.rate import RateEvidence, RateVerdict, Rule, evidence_of, judge_rate, verdict_of
from stepscope.judging.rise import Rise, rise_of
from stepscope.judging.trust import TrustRatio, trust_ratio

__all__ = [
    "PROBES",
    "Calibrated",
    "Finding",
    "Findings",
    "Outlook",
    "RateEvidence",
    "RateVerdict",
    "Rise",
    "Rule",
    "TrustRatio",
    "bin_of",
    "evidence_of",
    "findings",
    "judge_rate",
    "outlook",
    "rise_of",
    "trust_ratio",
    "verdict_of",
]
