"""Between text and token ids: how a prompt is rendered, and how a completion ended."""
