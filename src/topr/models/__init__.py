"""Language models on disk and in memory: files, loading, adapters, types, attention functions.

Nothing is imported here: names and files of models are looked at without torch.
"""
