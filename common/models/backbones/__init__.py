"""Backbones by name, and the feature maps that they give.
Heads, weights and whole models are one room up.
"""
