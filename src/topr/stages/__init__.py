"""The stages between a task and a trained model: generate, grade, curate, train.

Each is a function of its own section of the recipe and of what the stage before left on disk. It
writes into its own directory, the manifest last, and does nothing where the manifest is there.
An evaluation's numbers are computed in `topr.evaluation`; the order of the stages is in
`topr.runs.loop`.

Nothing is imported here: grading and curation start without the seconds that torch takes.
"""
