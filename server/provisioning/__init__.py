"""Setting up a consortium: certificates, kits, the server's home.
No runs.
"""
