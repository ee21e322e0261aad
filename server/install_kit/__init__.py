"""The install kit: fedgraft with all that it needs, signed, to be installed where there is no network.
Not the start-up kit with which a site joins: that is `common/identity`.
"""
