"""A run at the coordinator: exchanges, quorum, validation, results.
How updates are combined is in `fedgraft.server.aggregation`.
"""
