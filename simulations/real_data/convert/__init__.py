"""Public data as their owners publish them, brought into the form that scenarios read: a table, or images with a table.
Nothing is downloaded; what is left out is counted, with its reason.
"""
