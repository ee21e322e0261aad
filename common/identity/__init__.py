"""Who is who: keys, kits, enrolment and the signed roster of members.
No key of a site leaves it; nothing here talks to a network.
"""
