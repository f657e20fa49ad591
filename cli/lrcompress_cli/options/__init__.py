"""Options that commands share. Each group is passed to a command as one frozen dataclass."""
