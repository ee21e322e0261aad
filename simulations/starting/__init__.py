"""`fedgraft init`: a first study and scenario from what lies in a person's folder.
Nothing is trained, and nothing that exists is overwritten.
"""
