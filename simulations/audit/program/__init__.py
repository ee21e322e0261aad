"""Promises of the program itself, whoever runs it: words of errors, files of its owner alone, what was installed.
What it says to others is tried in `home` and `server`.
"""
