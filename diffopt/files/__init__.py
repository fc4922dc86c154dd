"""The JSON files that artifacts hold, a frozen dataclass each: its fields are the file's keys, in their order."""
