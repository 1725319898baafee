"""The paper's experiments, as data and one runner."""
