"""What noise is worth: the accountant of differential privacy, the same for a site that charges and a plan that prices.
Noise itself is made at the site, in `fedgraft.client.privacy.dp`.
"""
