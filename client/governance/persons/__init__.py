"""Persons who leave a site, or lose their key: what stands of what they had signed, and what a restored book forgot.
No signature is made here, and nothing is asked of people.
"""
