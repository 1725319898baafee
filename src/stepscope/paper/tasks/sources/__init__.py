"""Where the data of tasks come from: a file for each kind, with its sources, the first that works or one's own."""
