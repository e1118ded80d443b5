"""Models on disk.

hf.py           Hugging Face directories in and out: `load_model`, `save_model`, `model_hash`
families.py     of which families: their config to our network, their tensors' names to ours
origins.py      where a model came from, and what follows for the stage that goes on from it
cards.py        the README.md of a finished checkpoint
"""
