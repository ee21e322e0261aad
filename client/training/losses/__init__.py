"""What a gradient stage minimises, one file per loss.
Their names and keys are values of a plan, in `fedgraft.common.study.stages.losses`.
"""
