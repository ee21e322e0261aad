"""What waits at a site for a person: held answers on its disk, who decided what, and the limits before a signature.
No work on a model and no network here.
"""
