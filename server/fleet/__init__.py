"""The sites as a run sees them: messages out, replies in, each behind a wall, over Flower's grids.
What replies are worth is decided in `fedgraft.server.rounds`.
"""
