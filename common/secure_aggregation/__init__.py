"""Masks that cancel in sums over sites: keys, streams and what is summed.
What a site may mask, and how often, is in `fedgraft.client.privacy.masking`.
"""
