"""Real data for comparisons: where they lie on this machine, how one hospital is divided into several sites.
What is public is brought into this form by `convert`; nothing is ever downloaded.
"""
