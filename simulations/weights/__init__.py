"""Weights as a researcher handles them: import, soups.
How weights are stored and loaded is in `fedgraft.common.models`.
"""
