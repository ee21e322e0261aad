"""One file per method: its keys, what both ends remember and send, its equations, its preset. Loaded when named.
Nothing here knows of files, messages, or other methods.
"""
