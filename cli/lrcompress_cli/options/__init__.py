"""Options that commands share. Each group reaches a command as one frozen dataclass."""
