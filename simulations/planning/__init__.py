"""What to know before a run: prices of privacy, advice, the ranking of source models.
Nothing here changes a study.
"""
