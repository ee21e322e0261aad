"""Heads, temperatures and moments that follow from sums in closed form, the same wherever they are solved.
No gradient steps.
"""
