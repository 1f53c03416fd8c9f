"""Probes: measure a step or a policy, change nothing."""
