"""`site check`: whether a hospital can take part, in a report that names nobody.
Nothing here sends anything of patients.
"""
