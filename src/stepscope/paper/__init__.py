"""The reproduction of Pan and Li (arXiv 2306.00204): everything that exists because of the paper.

Only the command line imports it; it needs ``pip install "stepscope[paper]"``.
"""
