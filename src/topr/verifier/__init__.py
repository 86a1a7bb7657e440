"""The generative verifier: the task made of rollouts, verdicts as scores, votes over candidates.

Its stage is `topr.stages.verify`; it is trained as any other task.
"""
