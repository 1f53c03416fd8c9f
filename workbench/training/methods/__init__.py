"""The methods, by name. One file each, readable beside its paper."""

from workbench.training.methods import bridge, grpo, naive_mix, sft
from workbench.training.methods.method import Directions, Gradients, Method, Sides

METHODS: dict[str, Method] = {m.METHOD.name: m.METHOD for m in (bridge, grpo, sft, naive_mix)}

__all__ = ["METHODS", "Directions", "Gradients", "Method", "Sides"]
