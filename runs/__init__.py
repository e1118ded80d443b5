"""What it takes to run a stage, whatever the stage does.

options.py      the command line: a dataclass is the options, their defaults and their help
devices.py      device and ranks: `Env`, what the ranks share, bars, the memory that is free
launch.py       how a stage is launched and how it ends, with a sentence where it must
directory.py    a run's directory: `Run`, run.json, samples, the log
states.py       its saved state, written by all ranks, from which --resume goes on
files.py        JSON and text: read, or refused in a sentence; written whole, or not at all
plan.py         --plan: the memory of a run, before it starts
"""
