"""The stages between a task and a trained model: generate, grade, curate, train.

Each is a function of its own section of the recipe and of what the stage before left on disk. It
writes into a directory of its own, the manifest last, and does nothing where the manifest is there.
Evaluation is a room of its own (`topr.evaluation`); the order of the stages is `topr.runs.loop`'s.

Nothing is imported here: grading and curation start without the seconds that torch takes.
"""
