"""What arms are measured by: each kind of task's metrics over cases that count so many times, and the one that decides.
Nothing here trains, draws, or reads a file.
"""
