"""Tables for the terminal. Each fits 80 columns and uses more if available."""
