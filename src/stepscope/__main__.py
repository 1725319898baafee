"""``python -m stepscope``: the same as the ``stepscope`` command."""

from stepscope.cli import main

main()
