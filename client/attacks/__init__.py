"""Attacks as mathematics: on a site's own trainer, or on what a model gives away. Used by the hospital and by audits.
No file of a site is read or written here, and nothing is judged.
"""
