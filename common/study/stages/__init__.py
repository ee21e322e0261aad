"""What one stage of a plan is made of: losses, training, aggregation, stopping, private sums.
The plan that puts stages together is one room up.
"""
