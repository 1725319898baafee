"""The tables, figures and pages of experiments, as pure functions of their records."""
