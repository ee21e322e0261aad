"""A local consortium: a whole deployment on this machine, its server and its sites as processes of their own.

Everything is done by the functions of the commands that people type; nothing of a deployment is played or left out.
"""
