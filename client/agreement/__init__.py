"""What a site answers when it is asked, before a study, what it could supply; and that a run keeps to it.

Nothing here trains, spends privacy or decides how patients are split.
"""
