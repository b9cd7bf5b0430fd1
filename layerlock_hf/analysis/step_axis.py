"""Axes that count steps of the optimizer."""

from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator


def count_steps(axis: Axis):
    """Label whole steps alone, with commas between thousands."""
    axis.set_major_locator(MaxNLocator(integer=True))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
