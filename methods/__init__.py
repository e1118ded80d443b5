"""What a stage does to a model or asks of it, as far as it is not the stage's one loop.

locking.py      the locking data, equation 1; when a lock is valid
unlearning.py   a model's own samples unlearnt, NPO
rewards.py      a judge's rewards, those that can be gamed, random ones; the true score beside them
tampering.py    edits of weights, states and log-probs, and how they are undone
prompting.py    the battery of other prompts
decoding.py     what several samples show, one of them chosen without a reward
deception.py    what students of a weak supervisor lost to a second goal, and whether it could
                see it
"""
