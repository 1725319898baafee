"""A reproduction: the runs of all experiments, each with a directory of its own, and the page around them."""
