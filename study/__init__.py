"""Many runs of the stages, and what they say together: all that reproduce.py needs.

paper.py        the paper's figures as commands of the stages
matrix.py       locks against elicitors, as commands as well
gate.py         what the locks of the matrix are before anything is elicited
siblings.py     the matrix's headline rows over several locks and twins
jobs.py         running them, some at a time, each once
findings.py     what they measured
claims.py       the paper's claims as tests
sections.py     what is told of figures, claims and jobs
report.py       the page
game.py         ten blinded models for auditors: drawn, handed out, scored, played
case.py         a safety case's skeleton for one model
"""
