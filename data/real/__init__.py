"""Real problems: rows of published data sets, from files."""
