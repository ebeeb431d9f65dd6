"""Images in: whatever `--data` names becomes a `Source`."""
