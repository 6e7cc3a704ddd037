"""Benchmarks of latentfit: the comparison of the AdvAE and FlowAE paper, on MNIST and on digits.

The tasks are reached through the entry-point group `latentfit.benchmarks` (`latentfit bench
TASK`); everything here uses latentfit's public API only, as any user would.
"""
