"""Plug-ins for fedgraft: an example of each kind."""
