"""The large pieces of messages, as files beside Flower's database, which carries references to them.
Who may have a piece is decided by Flower's own rules, and by `object_store`.
"""
