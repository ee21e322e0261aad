"""What a study says, as frozen values: tasks, inputs, model, plan, stages, losses, aggregation.
No behaviour: checks are in `fedgraft.common.checks`, work at the site in `fedgraft.client.training`.
"""
