"""Small modules for the tests of the export, and what is looked at in what became of them."""

from torch import nn


def module(forward, **members):
    """Return a module with this forward and these members."""
    made = type("Net", (nn.Module,), {"forward": forward})()
    for name, member in members.items():
        setattr(made, name, member)
    return made


def codes(exported):
    return [each.code for each in exported.degradations]


def exporters(exported):
    return [each.exporter for each in exported.attempts]
