"""What is shown to others on the hub: cards and uploads. Nothing is imported here."""
