"""How commands speak to a person on a terminal, and how they end.
Logs of what runs for long are in `fedgraft.common.base.logs`.
"""
