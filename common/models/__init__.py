"""Models: backbones, heads, decoders, ensembles, weights and how a run begins.
Nothing that trains them.
"""
