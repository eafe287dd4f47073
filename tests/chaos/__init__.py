"""
Chaos: many small publications through the whole way, while everything that takes part is killed at random.

`make chaos` runs it; `python -m chaos --help` says what can be chosen. What it ends with is a verdict: every package
that was trained is stored, announced, and deployed or refused with a reason, and nobody who asked a model ever got an
answer that no whole model gives.
"""
